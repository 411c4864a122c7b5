"""The graph that the planner builds: the run's own, without its weights."""

import pytest
import tensorflow.compat.v1 as tf
from helpers.plans import GROUP, TINY

from switch_mtf.planning import configuration, graph


@pytest.fixture
def built(clean_gin):
  return graph.build(configuration.resolve([TINY], [GROUP], device="cpu"))


def test_it_is_a_training_step(built):
  # A gradient for each weight that the model trains, an update for each.
  variables = built.lowering.graph.trainable_variables
  assert len(built.gradients) == len(variables) > 20
  assert {g.shape.size for g in built.gradients} == {
      v.shape.size for v in variables}
  assert built.loss_weights == {"load_balancing_loss": [0.01, 0.01]}
  assert not built.tpu


def test_it_holds_no_weights(built):
  kinds = [op.type for op in built.train_op.graph.get_operations()]
  # The global step alone.
  assert kinds.count("VarHandleOp") == 1 and "VariableV2" not in kinds
  assert kinds.count("MatMul") > 10


def test_operations_of_loops_are_listed(clean_gin, loops_of_t5):
  split = ("utils.serialize_num_microbatches."
           "tokens_per_microbatch_per_replica = 32")
  made = graph.build(configuration.resolve([TINY], [GROUP, split],
                                           device="cpu"))
  listed = list(graph.operations(made.lowering.graph))
  assert len(listed) > len(made.lowering.graph.operations)


def test_features_have_the_shape_of_a_batch(clean_gin):
  config = configuration.resolve([TINY], [], device="cpu")
  with tf.Graph().as_default():
    found = graph._features(config)
  assert {name: x.shape.as_list() for name, x in found.items()} == {
      f"{feature}{suffix}": [4, length]
      for feature, length in (("inputs", 32), ("targets", 16))
      for suffix in ("", "_segmentation", "_position")}
