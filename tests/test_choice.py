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


@pytest.mark.parametrize("fast", ["0", "1"])
def test_one_switch_turns_everything_off(fast):
  # A model with our embedding, norm, loss and optimizer: with
  # SWITCH_MTF_FAST=0 none of their operations is in the graph, and nothing of
  # upstream is replaced for speed.
  script = f"""
import switch_mtf.kernels
import mesh_tensorflow as mtf
from helpers import plans
from mesh_tensorflow import placement_mesh_impl
from mesh_tensorflow.transformer import attention, transformer_layers
from switch_mtf.planning import configuration, graph
import tasks
configuration.start_graph_mode()
small = "FewPassAdafactor.min_dim_size_to_factor = 8"
made = graph.build(configuration.resolve([plans.TINY], [small], device="cpu"))
names = {{op.name.split("/")[-1].rstrip("_0123456789")
         for op in graph.operations(made.lowering.graph)}}
ours = {{"rms_norm", "rows", "cross_entropy", "add_up", "attention"}}
replaced = [x.__module__.startswith("switch_mtf") for x in (
    attention.attention, transformer_layers.SelfAttention.call,
    transformer_layers.EncDecAttention.call,
    placement_mesh_impl.PlacementMeshImpl.einsum, mtf.Variable.lower)]
if {fast}:
  assert ours <= names and all(replaced), (names, replaced)
else:
  assert not ours & names and not any(replaced), (names, replaced)
"""
  subprocess.run(
      [sys.executable, "-c", script], cwd=ROOT, check=True,
      env={**os.environ, "SWITCH_MTF_FAST": fast,
           "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])})
