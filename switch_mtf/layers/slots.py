"""Slots: which token gets which, and the two directions of the answer.

Pure functions of indices, without gradients, each on the groups that its
processor holds.
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
    asks_OGSK: float32 - 1 where a choice asks at all.
    dims: sizes.
    priority_OGS: serves tokens in order of this number, the largest first,
      instead of their position.
    once: a token that has a slot does not ask again.

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
    liking_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Lets each expert take the tokens that it likes best.

  Args:
    liking_OGSE: float32 - what an expert ranks tokens by, largest first.
    nonpadding_OGS: float32 - 1 for a real token; no other is taken.
    dims: sizes; choice k is expert k.

  Returns:
    int32 [outer_batch, batch, group, choices] - the token's slot: its rank, a
      tie going to the lower position; `capacity` where it is not taken.
  """
  capacity = dims.capacity_dim.size

  def rank(liking: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    real = real[..., None] > 0
    liking = tf.where(tf.broadcast_to(real, tf.shape(liking)), liking,
                      tf.fill(tf.shape(liking), liking.dtype.min))
    order = tf.argsort(
        liking, axis=-2, direction="DESCENDING", stable=True)
    slot = tf.minimum(tf.argsort(order, axis=-2), capacity)
    return tf.where(tf.broadcast_to(real, tf.shape(slot)), slot,
                    tf.fill(tf.shape(slot), capacity))

  return mtf.slicewise(
      rank, [liking_OGSE, nonpadding_OGS], output_shape=mtf.Shape(dims.OGSK),
      output_dtype=tf.int32, splittable_dims=dims.OG, grad_function=0,
      name="rank_tokens")


def invert(
    expert_OGSK: mtf.Tensor, slot_OGSK: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Finds the choice that holds each slot: `Routing.choice_OGEC`."""
  experts, capacity = dims.experts_dim.size, dims.capacity_dim.size
  choices = dims.group_size_dim.size * dims.choices_dim.size

  def scatter(expert: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    outer, groups = expert.shape.as_list()[:2]
    lines = outer * groups
    # Dropped choices all go to one extra place per group, then cut off.
    place = tf.where(
        slot < capacity, expert * capacity + slot,
        tf.fill(tf.shape(slot), experts * capacity))
    place = tf.reshape(place, [lines, choices])
    line = tf.broadcast_to(tf.range(lines)[:, None], [lines, choices])
    empty = tf.fill([lines, experts * capacity + 1], choices)
    taken = tf.tensor_scatter_nd_update(
        empty, tf.stack([line, place], axis=-1),
        tf.broadcast_to(tf.range(choices), [lines, choices]))
    return tf.reshape(taken[:, :-1], [outer, groups, experts, capacity])

  return mtf.slicewise(
      scatter, [expert_OGSK, slot_OGSK], output_shape=mtf.Shape(dims.OGEC),
      output_dtype=tf.int32, splittable_dims=dims.OG, grad_function=0,
      name="invert_routing")
