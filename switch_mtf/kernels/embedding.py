"""Token embedding and cross-entropy by index, where one-hot would be slower.

On TPU, and where the vocabulary is split over processors, both are upstream's.
"""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf import kernels
from switch_mtf.dims import mesh_axis, on_tpu, split_dims


@gin.configurable
class GatherEmbedding(transformer.VocabEmbedding):
  """Upstream's embedding, but that rows are gathered.

  The same variable, and the same numbers: an id that is not in the vocabulary
  has an embedding of zeros.
  """

  def ids_to_embedding(
      self, ids: mtf.Tensor, context: transformer.Context
  ) -> mtf.Tensor:
    """See the base class.

    Args:
      ids: int32 [batch dims, length?].
      context: of the stack; its model knows the layout.

    Returns:
      [batch dims, length?, d_model].
    """
    table = self._embedding_weights
    if not _by_index(ids.mesh, self._vocab_dim, context) or (
        table.shape.dims != [self._vocab_dim, self._output_dim]):
      return super().ids_to_embedding(ids, context)
    y = _gather(table, ids, split_dims(
        ids.shape, context.model.layout, context.model.mesh_shape))
    if self._scale_variable_like_classifier_weights:
      y *= self._output_dim.size ** 0.5
    return y


def _gather(
    table: mtf.Tensor, ids: mtf.Tensor, parts: list[mtf.Dimension]
) -> mtf.Tensor:
  """Rows of a table; `parts` are the dimensions over which ids are split."""
  vocab_dim, model_dim = table.shape.dims

  def grad(op: mtf.Operation, dy: mtf.Tensor):
    # Its dimensions may come in another order.
    dy = mtf.broadcast(dy, op.outputs[0].shape)
    # Each processor sums the gradients of its ids, then they are added up.
    sums = mtf.slicewise(
        lambda dy, ids: tf.reshape(
            kernels.sum_rows(dy, ids, vocab_dim.size),
            [*[1] * len(parts), vocab_dim.size, -1]),
        [dy, ids], output_shape=mtf.Shape([*parts, vocab_dim, model_dim]),
        splittable_dims=[*ids.shape.dims, model_dim], grad_function=0,
        name="sum_rows")
    return [mtf.reduce_sum(sums, output_shape=table.shape), None]

  return mtf.slicewise(
      kernels.rows, [table, ids], splittable_dims=[*ids.shape.dims, model_dim],
      output_shape=mtf.Shape([*ids.shape.dims, model_dim]),
      grad_function=grad, name="rows")


@gin.configurable
def cross_entropy_from_ids(
    model: transformer.Unitransformer, context: transformer.Context,
    logits: mtf.Tensor, targets: mtf.Tensor, output_vocab_dim: mtf.Dimension,
) -> mtf.Tensor:
  """`Unitransformer.loss_fn`: upstream's loss without one-hot targets.

  Args:
    model: of the targets.
    context: of its stack.
    logits: [batch dims, length, vocab].
    targets: int32 [batch dims, length]; no loss where it is not positive.
    output_vocab_dim: vocab.

  Returns:
    [] - the sum of cross-entropies and z-losses over the loss denominator.
  """
  ids = mtf.maximum(targets, 0)
  z_loss = model.z_loss if context.train else 0.0
  if model.label_smoothing or not _by_index(
      logits.mesh, output_vocab_dim, context):
    off = model.label_smoothing / output_vocab_dim.size
    loss = mtf.layers.softmax_cross_entropy_with_logits(
        logits, mtf.one_hot(
            ids, output_vocab_dim, dtype=context.activation_dtype,
            on_value=1.0 - model.label_smoothing + off, off_value=off),
        output_vocab_dim, z_loss=z_loss)
  else:
    loss = mtf.slicewise(
        lambda logits, ids: kernels.cross_entropy(logits, ids, z_loss),
        [mtf.to_float(logits), ids], output_shape=ids.shape,
        splittable_dims=ids.shape.dims, name="cross_entropy")
    loss = mtf.cast(loss, logits.dtype)
  weights = mtf.cast(mtf.greater(targets, 0), context.activation_dtype)
  if model.loss_on_targets_only:
    weights *= mtf.cast(
        mtf.logical_not(transformer.delimited_lm_inputs_mask(targets)),
        context.activation_dtype)
  return mtf.reduce_sum(loss * weights) / model.loss_denominator(
      targets, context.num_microbatches)


def _by_index(
    mesh: mtf.Mesh, vocab_dim: mtf.Dimension, context: transformer.Context
) -> bool:
  """Whether a processor has all of the vocabulary, and can gather."""
  axis, _ = mesh_axis(
      vocab_dim, context.model.layout, context.model.mesh_shape)
  return not on_tpu(mesh) and axis is None
