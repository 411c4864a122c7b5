"""Advice on what fits, by hand."""

import types

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from helpers.plans import memory_of

import tasks  # noqa: F401
from switch_mtf.planning import (
  devices,
  fit,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_largest_batch():
  # Of 100 bytes 40 are weights; 8 sequences on 2 processors take 20 a
  # processor, 5 each: 12 fit there, 24 on both.
  config = types.SimpleNamespace(
      mesh_shape=mtf.convert_to_shape("batch:2"), batch_size=8,
      num_microbatches=1,
      layout_rules=mtf.convert_to_layout_rules("batch:batch"))
  device = devices.Device("d", 100, None)
  advice = fit.advise(memory_of(weights=40, activations=20), config, device,
                      types.SimpleNamespace(all_variables=[]))
  assert advice == fit.Advice(fits=True, largest_batch=24, meshes=[])


@pytest.mark.parametrize("parts, memory, mesh", [
    # A weight of 64 bytes and 8 of tokens in 40: split over 2, 32 + 4 fit.
    (1, 40, "batch:2"),
    # 8 sequences in 2 parts of 4, of 8 bytes. On 2 processors each has one part
    # of 4: 32 + 8 do not fit in 39. On 4, 2 sequences: 16 + 4 do.
    (2, 39, "batch:4")])
def test_mesh_that_fits(parts, memory, mesh):
  config = types.SimpleNamespace(
      mesh_shape=mtf.convert_to_shape("batch:1"), batch_size=8,
      num_microbatches=parts,
      layout_rules=mtf.convert_to_layout_rules("batch:batch,experts:batch"))
  variable = types.SimpleNamespace(
      shape=mtf.convert_to_shape("experts:4,d:4"), slice_dtype=tf.float32)
  advice = fit.advise(
      memory_of(weights=64, activations=8), config,
      devices.Device("d", memory, None),
      types.SimpleNamespace(all_variables=[variable]))
  assert advice == fit.Advice(fits=False, largest_batch=0, meshes=[mesh])
