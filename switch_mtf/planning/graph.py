"""Builds a run's training graph for one processor, without its weights."""

import copy
import dataclasses
import gc
import types
from collections.abc import Callable, Iterator

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf import errors
from switch_mtf.layers import summaries
from switch_mtf.planning.configuration import Configuration
from switch_mtf.planning.mesh import PlanningMeshImpl
from switch_mtf.upstream import seams

TRAIN = tf.estimator.ModeKeys.TRAIN


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
  """A graph of one training step, which cannot be run.

  Attributes:
    lowering: lowering of the whole step; `lowering.graph` is the Mesh-TF graph.
    mesh_impl: mesh implementation that the graph was lowered to.
    train_op: operation of the whole step, in the TensorFlow graph of one
      processor.
    gradients: gradients of the loss, for the trainable variables that have one.
    loss_weights: auxiliary loss -> its weight in the model's loss, per layer.
    tpu: whether the graph is for TPU.
  """

  lowering: mtf.Lowering
  mesh_impl: PlanningMeshImpl
  train_op: tf.Operation
  gradients: list[mtf.Tensor]
  loss_weights: dict[str, list[float]]
  tpu: bool


def operations(graph: mtf.Graph) -> Iterator[mtf.Operation]:
  """Yields the operations of a graph in lowering order.

  Args:
    graph: Mesh-TF graph of a step. `graph.operations` lacks the operations
      inside the loop over microbatches.
  """
  for op in graph.operations:
    if isinstance(op, mtf.ops.WhileLoopOperation):
      yield from op._body_ops
    yield op


def build(configuration: Configuration) -> TrainingGraph:
  """Builds the graph that the run would build.

  Args:
    configuration: result of `resolve`, whose bindings gin must still hold.

  Returns:
    The graph.

  Raises:
    ValueError: if building the run's graph would raise one.
  """
  gradients = []
  tpu = configuration.is_tpu
  model = copy.copy(configuration.arguments["transformer_model"])
  model.initialize = lambda: None  # would restore a checkpoint
  mesh_impl = PlanningMeshImpl(
      configuration.mesh_shape, configuration.layout_rules)
  arguments = configuration.arguments | {
      "use_tpu": tpu,
      "transformer_model": model,
      "model_dir": "",
      "init_checkpoint": None,  # no values are needed, so no file either
      "optimizer": _watched(configuration.arguments["optimizer"], gradients)}
  collects = gc.isenabled()
  gc.disable()  # hundreds of thousands of objects, none of them garbage
  try:
    with tf.Graph().as_default(), seams.graph_that_never_runs(
        mesh_impl) as lowerings:
      tf.train.create_global_step()
      spec = utils.tpu_estimator_model_fn(**arguments)(
          _features(configuration), None, TRAIN,
          params={"context": _tpu_context()} if tpu else {})
      weights = summaries.loss_weights()
  except ValueError as error:
    raise errors.explain_mesh_error(
        error, configuration.mesh_shape,
        configuration.layout_rules) or error from None
  finally:
    if collects:
      gc.enable()
  lowering, = lowerings
  return TrainingGraph(
      lowering=lowering, mesh_impl=mesh_impl, train_op=spec.train_op,
      gradients=[g for g in gradients if g is not None], loss_weights=weights,
      tpu=tpu)


def _watched(optimizer: Callable, gradients: list) -> Callable:
  """Returns the optimizer, changed to append its gradients to a list."""

  def make(**kwargs):
    made = optimizer(**kwargs)
    apply_grads = made.apply_grads

    def noting(grads, variables):
      gradients.extend(grads)
      return apply_grads(grads, variables)

    made.apply_grads = noting
    return made

  return make


def _features(configuration: Configuration) -> dict[str, tf.Tensor]:
  """Returns a packed batch as T5's input pipeline makes it."""
  return {
      name + suffix: tf.placeholder(
          tf.int32, [configuration.batch_size, length])
      for name, length in configuration.sequence_length.items()
      for suffix in ("", "_segmentation", "_position")}


def _tpu_context() -> types.SimpleNamespace:
  """Returns the part of a TPUContext that `tpu_estimator_model_fn` reads."""
  assignment = types.SimpleNamespace(
      topology=types.SimpleNamespace(mesh_shape=[1, 1, 1]))
  return types.SimpleNamespace(
      num_hosts=1, num_replicas=1, device_assignment=assignment,
      tpu_host_placement_function=lambda host_id: "/cpu:0")
