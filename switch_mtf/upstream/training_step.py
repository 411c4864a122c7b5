"""Openings in upstream's training step: its loss, and its microbatches.

`serialize_training_step` runs one graph for all microbatches, in a loop, and
keeps to itself what is computed there.
"""

import functools
from collections.abc import Callable
from typing import Any

from switch_mtf.upstream import seams

_microbatch: list = []  # the number of the microbatch that is being built
_to_sum: list = []  # (values, then) of the microbatch; see `sum_over_step`


def open_microbatches() -> None:
  """Makes microbatches known while they are built.

  See `microbatch` and `sum_over_step`. Can be removed when the counter of the
  loop is passed to the model, and the model may add outputs.
  """
  import mesh_tensorflow as mtf
  from mesh_tensorflow import ops
  upstream = ops.serialize_training_step

  @functools.wraps(upstream)
  def serialize_training_step(features, model_fn, batch_dim, num_splits):
    loop, summed = ops.while_loop, []

    def numbered_loop(cond_fn, body_fn, *args, **kwargs):
      def body(number, *rest):
        _microbatch.append(number)
        try:
          return body_fn(number, *rest)
        finally:
          _microbatch.pop()

      return loop(cond_fn, body, *args, **kwargs)

    def model_with_sums(microbatch_features):
      outputs = dict(model_fn(microbatch_features))
      while _to_sum:
        summed.append(_to_sum.pop(0))
        for name, value in summed[-1][0].items():
          outputs[len(summed), name] = value
      return outputs

    with seams._replaced(ops, while_loop=numbered_loop):
      gradients, outputs = upstream(
          features, model_with_sums, batch_dim, num_splits)
    for number, (values, then) in enumerate(summed, start=1):
      then({name: outputs.pop((number, name)) for name in values})
    return gradients, outputs

  ops.serialize_training_step = serialize_training_step
  mtf.serialize_training_step = serialize_training_step


def microbatch() -> Any:
  """Returns the number of the microbatch, an int32 mtf.Tensor [], or None.

  None if the graph that is being built is not one of microbatches.
  """
  return _microbatch[-1] if _microbatch else None


def sum_over_step(
    values: dict[str, Any], then: Callable[[dict[str, Any]], None]) -> None:
  """Calls `then` with values that are summed over the step's microbatches.

  Args:
    values: name to mtf.Tensor [] of the model that is being built.
    then: function of the names and sums; called at once without microbatches.
  """
  if _microbatch:
    _to_sum.append((values, then))
  else:
    then(values)


def open_loss() -> None:
  """Shows each loss of a decoder or language model to the extensions.

  See `ModelFnExtension.see_loss`. Can be removed when upstream returns the
  logits of a training step.
  """
  from mesh_tensorflow.transformer import transformer
  upstream = transformer.Unitransformer._compute_loss

  @functools.wraps(upstream)
  def _compute_loss(self, context, logits, targets, output_vocab_dim):
    for extension in seams._extensions:
      extension.see_loss(self, context, logits, targets, output_vocab_dim)
    return upstream(self, context, logits, targets, output_vocab_dim)

  transformer.Unitransformer._compute_loss = _compute_loss
