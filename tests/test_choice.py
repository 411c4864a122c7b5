"""A kernel of ours, or the part of T5 that it replaces."""

import os
import subprocess
import sys
import types

import mesh_tensorflow as mtf
import pytest
from helpers.graphs import ROOT

from switch_mtf.kernels import choice


@choice.else_upstream(lambda *args, **kwargs: ("upstream", args, kwargs),
                      lambda x, scale, **unused: x > 0 and scale == 2)
def kernel(x, scale=2, *, name="n"):
  return "ours", x, scale, name


def test_a_call_that_the_kernel_can_compute():
  assert kernel(1) == ("ours", 1, 2, "n")
  assert kernel(1, name="m") == ("ours", 1, 2, "m")


@pytest.mark.parametrize("args, kwargs", [
    ((-1,), {}), ((1, 3), {}), ((1,), {"scale": 3}), ((-1,), {"name": "m"})])
def test_a_call_is_handed_to_upstream_as_it_is(args, kwargs):
  assert kernel(*args, **kwargs) == ("upstream", args, kwargs)


def test_kernels_run_off_tpu_and_where_speed_is_on(monkeypatch):
  # Only on TPU is a mesh made with what places variables.
  placer = types.SimpleNamespace(device_function=lambda op: "")
  cpu = mtf.Mesh(mtf.Graph(), "mesh")
  tpu = mtf.Mesh(mtf.Graph(), "mesh", placer)
  assert choice.replaces_upstream(cpu) and not choice.replaces_upstream(tpu)
  monkeypatch.setattr(choice, "FAST", False)
  assert not choice.replaces_upstream(cpu)


def test_one_switch_turns_everything_off():
  # With SWITCH_MTF_FAST=0 a model with our embedding, norm, loss and optimizer
  # computes as upstream's own, and nothing of upstream is replaced for speed.
  script = """
import switch_mtf.kernels
import mesh_tensorflow as mtf
from mesh_tensorflow import optimize
from mesh_tensorflow.transformer import attention, transformer_layers
from switch_mtf.kernels import adafactor, choice, embedding, norm
from switch_mtf.kernels import attention as ours
assert not choice.replaces_upstream(mtf.Mesh(mtf.Graph(), "mesh"))
assert attention.attention is ours.attention.upstream
assert transformer_layers.SelfAttention.call.__module__.startswith("mesh")
for function in (norm.rms_norm.__wrapped__,
                 embedding.GatherEmbedding.ids_to_embedding,
                 adafactor.FewPassAdafactor.apply_grad):
  assert function.upstream
"""
  subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True,
                 env={**os.environ, "SWITCH_MTF_FAST": "0"})
