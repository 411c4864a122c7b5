"""Gives the slots of the experts to tokens.

Pure functions of indices, without gradients. Each processor computes them for
the groups that it holds.
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.dims import MoeDims


def fill_slots(
    expert_OGSK: mtf.Tensor,
    asks_OGSK: mtf.Tensor,
    dims: MoeDims,
    *,
    priority_OGS: mtf.Tensor | None = None,
    once: bool = False,
) -> mtf.Tensor:
  """Gives the slots of the experts to the tokens that ask for them.

  All first choices are served before all second ones, and so on; among equals
  the token of lower position comes first.

  Args:
    expert_OGSK: int32 - the expert that each choice asks.
    asks_OGSK: float32 - 1 where a choice asks for a slot, else 0.
    dims: sizes of the layer's dimensions.
    priority_OGS: if given, tokens are served by this number, the largest
      first, instead of by position.
    once: whether a token stops asking once it has a slot.

  Returns:
    int32 [outer_batch, batch, group, choices] - the slot, `capacity` where the
      expert is full or was not asked.
  """
  experts, capacity = dims.experts_dim.size, dims.capacity_dim.size

  def in_order(expert: tf.Tensor, asks: tf.Tensor) -> tf.Tensor:
    slots, taken_E, waiting = [], 0.0, 1.0
    for k in range(dims.choices_dim.size):
      chosen = tf.one_hot(expert[..., k], experts) * (
          asks[..., k] * waiting)[..., None]
      place = tf.cumsum(chosen, axis=-2, exclusive=True) + taken_E
      fits = chosen * tf.cast(place < capacity, tf.float32)
      got = tf.reduce_sum(fits, axis=-1)
      slot = tf.cast(tf.reduce_sum(place * fits, axis=-1), tf.int32)
      slots.append(tf.where(got > 0, slot, tf.fill(tf.shape(slot), capacity)))
      taken_E += tf.reduce_sum(fits, axis=-2, keepdims=True)
      if once:
        waiting -= got
    return tf.stack(slots, axis=-1)

  def by_priority(
      expert: tf.Tensor, asks: tf.Tensor, priority: tf.Tensor
  ) -> tf.Tensor:
    order = tf.argsort(priority, direction="DESCENDING", stable=True)
    slots = in_order(tf.gather(expert, order, batch_dims=2),
                     tf.gather(asks, order, batch_dims=2))
    return tf.gather(slots, tf.argsort(order), batch_dims=2)

  fill = in_order if priority_OGS is None else by_priority
  inputs = [expert_OGSK, asks_OGSK]
  if priority_OGS is not None:
    inputs.append(priority_OGS)
  return mtf.slicewise(
      fill, inputs, output_shape=mtf.Shape(dims.OGSK), output_dtype=tf.int32,
      splittable_dims=dims.OG, grad_function=0, name="fill_slots")


def rank_tokens(
    score_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Lets each expert take the tokens with its highest scores.

  Args:
    score_OGSE: float32 - scores by which an expert ranks tokens.
    nonpadding_OGS: float32 - 1 for a real token; padding is never taken.
    dims: sizes of the layer's dimensions; choice k is expert k.

  Returns:
    int32 [outer_batch, batch, group, choices] - the token's slot: its rank, a
      tie going to the lower position; `capacity` where it is not taken.
  """
  capacity = dims.capacity_dim.size

  def rank(score: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    real = real[..., None] > 0
    score = tf.where(tf.broadcast_to(real, tf.shape(score)), score,
                      tf.fill(tf.shape(score), score.dtype.min))
    order = tf.argsort(
        score, axis=-2, direction="DESCENDING", stable=True)
    slot = tf.minimum(tf.argsort(order, axis=-2), capacity)
    return tf.where(tf.broadcast_to(real, tf.shape(slot)), slot,
                    tf.fill(tf.shape(slot), capacity))

  return mtf.slicewise(
      rank, [score_OGSE, nonpadding_OGS], output_shape=mtf.Shape(dims.OGSK),
      output_dtype=tf.int32, splittable_dims=dims.OG, grad_function=0,
      name="rank_tokens")
