"""Passes a layer's metrics to the code that runs the graph.

`record` adds a tensor to a graph collection when the graph is lowered; the
training loop averages, prints and writes the tensors of that collection.
Scalars also go to Mesh-TF's own summaries, because on TPU no tensor can be
fetched from inside the step: `tpu_estimator_model_fn.tpu_summaries` sends those
summaries to the host.
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

METRICS_COLLECTION = "switch_mtf/metrics"
STEP_COLLECTION = "switch_mtf/step"
WEIGHTS_COLLECTION = "switch_mtf/loss_weights"


class _RecordOperation(mtf.Operation):
  """An operation without outputs that fills a collection."""

  def __init__(
      self, name: str, x: mtf.Tensor, collection: str = METRICS_COLLECTION):
    super().__init__([x], name="record")
    self._metric_name = name
    self._collection = collection

  def lower(self, lowering: mtf.Lowering) -> None:
    """Adds (name, tf.Tensor) to the collection."""
    value = lowering.tensors[self.inputs[0]].to_laid_out_tensor().tensor_list[0]
    tf.add_to_collection(self._collection, (self._metric_name, value))


def record(context, metrics: dict[str, mtf.Tensor]) -> None:
  """Records one layer's metrics under its place in the model.

  Nothing is recorded while decoding or inside a microbatch, because tensors of
  a loop body cannot be fetched.

  Args:
    context: transformer.Context of the layer's call.
    metrics: name to float32 tensor, replicated on every processor: a scalar or
      a vector over experts.
  """
  if context.mode not in (
      tf.estimator.ModeKeys.TRAIN, tf.estimator.ModeKeys.EVAL):
    return
  if context.num_microbatches and context.num_microbatches > 1:
    return
  place = layer_place(tf.get_variable_scope().name)
  for name, value in metrics.items():
    name = f"{place}/{name}" if place else name
    value = mtf.stop_gradient(value)
    _RecordOperation(name, value)
    if not value.shape.dims:
      mtf.scalar_summary(name, value)


def record_step(values: dict[str, mtf.Tensor]) -> None:
  """Records scalars that are read at every step.

  Args:
    values: name to float32 [], replicated on every processor.
  """
  for name, value in values.items():
    _RecordOperation(name, mtf.stop_gradient(value), STEP_COLLECTION)


def record_loss_weights(weights: dict[str, float]) -> None:
  """Records the coefficients of one layer's auxiliary losses.

  Args:
    weights: name of a loss to its coefficient in the model's loss.
  """
  place = layer_place(tf.get_variable_scope().name)
  for name, weight in weights.items():
    tf.add_to_collection(WEIGHTS_COLLECTION, (place, name, weight))


def loss_weights() -> dict[str, list[float]]:
  """Returns the coefficients recorded in the default graph, by loss.

  A layer that is built several times, such as for microbatches, counts once.

  Returns:
    Name of a loss to its coefficient in each layer.
  """
  found = {}
  for place, name, weight in tf.get_collection(WEIGHTS_COLLECTION):
    found.setdefault(name, {})[place] = weight
  return {name: list(weights.values()) for name, weights in found.items()}


def layer_place(scope: str) -> str:
  """Strips the class name from 'encoder/block_000/layer_001/SwitchFFN'."""
  return scope.removesuffix("SwitchFFN").rstrip("/")
