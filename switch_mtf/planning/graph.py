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
  """A step of training, of which nothing can be run.

  Attributes:
    lowering: of the whole step; `lowering.graph` is the Mesh-TF graph.
    mesh_impl: what it was lowered to.
    train_op: the step, in TensorFlow's graph for one processor.
    gradients: of the loss by each trainable variable that has one.
    loss_weights: loss -> the weight of each layer's in the model's loss.
    tpu: whether it is for TPU.
  """

  lowering: mtf.Lowering
  mesh_impl: PlanningMeshImpl
  train_op: tf.Operation
  gradients: list[mtf.Tensor]
  loss_weights: dict[str, list[float]]
  tpu: bool


def operations(graph: mtf.Graph) -> Iterator[mtf.Operation]:
  """The operations of a graph in the order in which they are lowered.

  Args:
    graph: of a step; microbatches are a loop whose operations it does not list.
  """
  for op in graph.operations:
    if isinstance(op, mtf.ops.WhileLoopOperation):
      yield from op._body_ops
    yield op


def build(configuration: Configuration) -> TrainingGraph:
  """Builds the graph that the run would build.

  Args:
    configuration: as `resolve` has left it, gin's bindings too.

  Returns:
    The graph.

  Raises:
    ValueError: where building the run's graph would raise one.
  """
  gradients = []
  tpu = configuration.is_tpu
  model = copy.copy(configuration.arguments["transformer_model"])
  model.initialize = lambda: None  # from a checkpoint
  mesh_impl = PlanningMeshImpl(
      configuration.mesh_shape, configuration.layout_rules)
  arguments = configuration.arguments | {
      "use_tpu": tpu,
      "transformer_model": model,
      "model_dir": "",
      "init_checkpoint": None,  # values are not needed, nor is the file
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
  """The optimizer, noting the gradients that it is given."""

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
  """A packed batch, as T5's input pipeline makes it."""
  return {
      name + suffix: tf.placeholder(
          tf.int32, [configuration.batch_size, length])
      for name, length in configuration.sequence_length.items()
      for suffix in ("", "_segmentation", "_position")}


def _tpu_context() -> types.SimpleNamespace:
  """As much of a TPUContext as `tpu_estimator_model_fn` looks at."""
  assignment = types.SimpleNamespace(
      topology=types.SimpleNamespace(mesh_shape=[1, 1, 1]))
  return types.SimpleNamespace(
      num_hosts=1, num_replicas=1, device_assignment=assignment,
      tpu_host_placement_function=lambda host_id: "/cpu:0")
