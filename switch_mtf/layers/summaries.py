"""Hands a layer's measurements to whoever runs the graph.

`record` leaves a tensor in a graph collection when the graph is lowered; the
training loop averages, prints and writes what it finds there. On TPU tensors
cannot be fetched from inside the step; there scalars also go to Mesh-TF's own
summaries, which `tpu_estimator_model_fn.tpu_summaries` sends to the host.
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

METRICS_COLLECTION = "switch_mtf/metrics"
WEIGHTS_COLLECTION = "switch_mtf/loss_weights"


class _RecordOperation(mtf.Operation):
  """Leaves (name, tf.Tensor) in `METRICS_COLLECTION`; passes nothing on."""

  def __init__(self, name: str, x: mtf.Tensor):
    super().__init__([x], name="record")
    self._metric_name = name

  def lower(self, lowering: mtf.Lowering) -> None:
    value = lowering.tensors[self.inputs[0]].to_laid_out_tensor().tensor_list[0]
    tf.add_to_collection(METRICS_COLLECTION, (self._metric_name, value))


def record(context, metrics: dict[str, mtf.Tensor]) -> None:
  """Records one layer's metrics under its place in the model.

  Nothing is recorded while decoding or inside a microbatch, where the graph is
  a loop body that cannot be looked into.

  Args:
    context: transformer.Context of the layer's call.
    metrics: name to float32 tensor, on every processor whole: a scalar or a
      vector over experts.
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


def record_loss_weights(weights: dict[str, float]) -> None:
  """Records the weights of one layer's auxiliary losses in the model's loss.

  Args:
    weights: name of a loss to its coefficient.
  """
  place = layer_place(tf.get_variable_scope().name)
  for name, weight in weights.items():
    tf.add_to_collection(WEIGHTS_COLLECTION, (place, name, weight))


def loss_weights() -> dict[str, list[float]]:
  """What the layers of the default graph recorded, by loss.

  A layer that is built several times, as for microbatches, counts once.
  """
  found = {}
  for place, name, weight in tf.get_collection(WEIGHTS_COLLECTION):
    found.setdefault(name, {})[place] = weight
  return {name: list(weights.values()) for name, weights in found.items()}


def layer_place(scope: str) -> str:
  """'encoder/block_000/layer_001/SwitchFFN' without its class name."""
  return scope.removesuffix("SwitchFFN").rstrip("/")
