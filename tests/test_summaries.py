"""Metrics of layers reach whoever runs the graph."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import lower, make_context, recorded_metrics, run

from switch_mtf.layers import summaries

PLACE = "encoder/block_000/layer_001"


def record(mesh, mode="train", microbatches=1, scope=f"{PLACE}/SwitchFFN"):
  context = make_context(mesh, mode=mode)
  context.num_microbatches = microbatches
  with tf.variable_scope(scope):
    summaries.record(context, {
        "loss": mtf.constant(mesh, 2.5),
        "load": mtf.constant(mesh, 0.5, mtf.convert_to_shape("experts:2"))})
  lower(mesh)


def test_values_are_named_by_their_layer(new_mesh):
  record(new_mesh())
  found = run(recorded_metrics())
  assert found.keys() == {f"{PLACE}/loss", f"{PLACE}/load"}
  assert found[f"{PLACE}/loss"] == 2.5
  np.testing.assert_array_equal(found[f"{PLACE}/load"], [.5, .5])


def test_scalars_are_mtf_summaries_too(new_mesh):
  record(new_mesh())
  names = [name for name, _ in tf.get_collection(
      mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)]
  # Mesh-TF puts the variable scope in front.
  name, = names
  assert name.endswith(f"{PLACE}/loss")


@pytest.mark.parametrize("options", [
    {"mode": "incremental"}, {"mode": "first_part"}, {"microbatches": 2}])
def test_nothing_is_recorded_in_loops(options, new_mesh):
  record(new_mesh(), **options)
  assert recorded_metrics() == {}


@pytest.mark.parametrize("layout", ["", "batch:a"])
def test_scalars_of_every_step(layout, new_mesh):
  # The same sum on every processor, whether they share the work or not.
  mesh = new_mesh()
  summaries.record_step({"sum": mtf.reduce_sum(mtf.ones(
      mesh, mtf.convert_to_shape("batch:4")))})
  lower(mesh, "a:2", layout)
  (name, value), = tf.get_collection(summaries.STEP_COLLECTION)
  assert (name, run(value)) == ("sum", 4.0)
  assert recorded_metrics() == {}


def test_weights_of_losses_count_once_for_each_layer():
  for layer in (1, 3, 3):  # the second is built twice, as for microbatches
    with tf.variable_scope(
        f"encoder/block_000/layer_00{layer}/SwitchFFN", reuse=tf.AUTO_REUSE):
      summaries.record_loss_weights({"load_balancing_loss": 0.01 * layer})
  assert summaries.loss_weights() == {"load_balancing_loss": [0.01, 0.03]}
