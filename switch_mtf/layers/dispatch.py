"""Moves tokens to the slots of their experts, and results back.

Two dispatchers with one contract, equal to float rounding forward and
backward. `EinsumDispatcher` multiplies by one-hot masks, as the paper does: on
TPU that is fast and a gather is not. `GatherDispatcher` moves rows by index,
for CPU and GPU. Each direction has one all-to-all, `to_experts_side` or
`to_groups_side`, and there is no other communication here.
"""

import abc

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.dims import MoeDims, check_shape
from switch_mtf.layers.routing import Routing
from switch_mtf.mesh import on_tpu


def to_experts_side(x_EOGCM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Splits over experts what was split over groups: all-to-all number one.

  Where experts are not split, or by another mesh axis than groups, this is
  local: each processor keeps the slots of its groups.

  Args:
    x_EOGCM: [experts_unsplit, outer_batch, batch, expert_capacity, d_model].
    dims: sizes.

  Returns:
    [experts, expert_tokens, d_model] - groups and slots as one axis, so that
      the experts are one batched matmul; outer_batch stays between experts and
      expert_tokens where experts are replicated.
  """
  here_EOGCM = mtf.reshape(x_EOGCM, [
      dims.experts_dim, dims.outer_batch_dim, dims.num_groups_at_experts_dim,
      dims.capacity_dim, dims.model_dim])
  return mtf.reshape(here_EOGCM, dims.EXM)


def to_groups_side(y_EXM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Splits over groups what was split over experts: all-to-all number two.

  The inverse of `to_experts_side`; same shapes. Where experts are split by
  another mesh axis than groups, it gathers the results over that axis.
  """
  here_EOGCM = mtf.reshape(y_EXM, [
      dims.experts_dim, dims.outer_batch_dim, dims.num_groups_at_experts_dim,
      dims.capacity_dim, dims.model_dim])
  return mtf.reshape(here_EOGCM, _slots(dims))


def _slots(dims: MoeDims) -> list[mtf.Dimension]:
  """Dimensions EOGCM of the slots while the groups are split."""
  return [dims.experts_unsplit_dim, dims.outer_batch_dim, dims.num_groups_dim,
          dims.capacity_dim, dims.model_dim]


class Dispatcher(abc.ABC):
  """The contract of a dispatcher."""

  @abc.abstractmethod
  def to_experts(
      self, x_OGSM: mtf.Tensor, routing: Routing, dims: MoeDims
  ) -> mtf.Tensor:
    """Puts each token into the slots of its choices.

    Args:
      x_OGSM: [outer_batch, batch, group, d_model] - tokens.
      routing: who goes where.
      dims: sizes.

    Returns:
      [experts, expert_tokens, d_model], split over experts; empty slots are 0.
    """

  @abc.abstractmethod
  def from_experts(
      self, y_EXM: mtf.Tensor, routing: Routing, dims: MoeDims
  ) -> mtf.Tensor:
    """Sums the results of each token's choices, times their weights.

    Args:
      y_EXM: [experts, expert_tokens, d_model], split over experts.
      routing: who went where.
      dims: sizes.

    Returns:
      [outer_batch, batch, group, d_model] - exactly 0 for a token none of whose
        choices got a slot.
    """


@gin.configurable
class EinsumDispatcher(Dispatcher):
  """Multiplies by one-hot masks OGSEC (paper, section 5.4 and appendix F)."""

  def to_experts(self, x_OGSM, routing, dims):
    """See the base class."""
    check_shape(x_OGSM, dims.OGSM, "EinsumDispatcher x")
    dispatch_OGSEC = self._mask(routing, dims, x_OGSM.dtype)
    x_EOGCM = mtf.einsum([x_OGSM, dispatch_OGSEC], mtf.Shape(_slots(dims)))
    return to_experts_side(x_EOGCM, dims)

  def from_experts(self, y_EXM, routing, dims):
    """See the base class."""
    check_shape(y_EXM, dims.EXM, "EinsumDispatcher y")
    combine_OGSEC = self._mask(
        routing, dims, y_EXM.dtype, weight_OGSK=routing.weight_OGSK)
    y_EOGCM = to_groups_side(y_EXM, dims)
    return mtf.einsum([y_EOGCM, combine_OGSEC], mtf.Shape(dims.OGSM))

  def _mask(self, routing, dims, dtype, weight_OGSK=None):
    """1, or the weight, where a token holds a slot; `dtype` OGSEC."""
    experts_OGSKE = mtf.one_hot(
        routing.expert_OGSK, dims.experts_unsplit_dim, dtype=dtype)
    # A dropped choice has slot == capacity: its one-hot row is all 0.
    slots_OGSKC = mtf.one_hot(
        routing.slot_OGSK, dims.capacity_dim, dtype=dtype)
    if weight_OGSK is not None:
      experts_OGSKE *= mtf.cast(weight_OGSK, dtype)
    return mtf.einsum(
        [experts_OGSKE, slots_OGSKC],
        mtf.Shape([*dims.OGS, dims.experts_unsplit_dim, dims.capacity_dim]))


@gin.configurable
class GatherDispatcher(Dispatcher):
  """Moves rows by index.

  Choice to slot is injective, so the gradient of a gather is the gather by the
  inverse index: nothing is ever scattered or summed.
  """

  def to_experts(self, x_OGSM, routing, dims):
    """See the base class."""
    check_shape(x_OGSM, dims.OGSM, "GatherDispatcher x")
    x_EOGCM = mtf.slicewise(
        lambda x, slot_of, choice_of: _rows_to_slots(x, choice_of, dims),
        [x_OGSM, *_both_ways(routing, dims)],
        output_shape=mtf.Shape(_slots(dims)), output_dtype=x_OGSM.dtype,
        splittable_dims=dims.OG, name="rows_to_slots",
        grad_function=lambda op, dy_EOGCM: [
            _sum_choices(_slots_to_rows_op(dy_EOGCM, *op.inputs[1:], dims),
                         dims), None, None])
    return to_experts_side(x_EOGCM, dims)

  def from_experts(self, y_EXM, routing, dims):
    """See the base class."""
    check_shape(y_EXM, dims.EXM, "GatherDispatcher y")
    y_OGSKM = _slots_to_rows_op(
        to_groups_side(y_EXM, dims), *_both_ways(routing, dims), dims)
    weight_OGSK = mtf.cast(routing.weight_OGSK, y_OGSKM.dtype)
    return _sum_choices(y_OGSKM * weight_OGSK, dims)


def _both_ways(routing: Routing, dims: MoeDims) -> list[mtf.Tensor]:
  """Slot of each choice (E * C + 1 values) and choice of each slot."""
  capacity = dims.capacity_dim.size
  slots = dims.experts_dim.size * capacity

  def flat(expert: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    return tf.where(
        slot < capacity, expert * capacity + slot,
        tf.fill(tf.shape(slot), slots))

  slot_OGSK = mtf.slicewise(
      flat, [routing.expert_OGSK, routing.slot_OGSK],
      splittable_dims=dims.OG, grad_function=0, name="flat_slot")
  return [slot_OGSK, routing.choice_OGEC]


def _sum_choices(y_OGSKM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Adds up a token's choices."""
  if dims.choices_dim.size == 1:
    return mtf.reshape(y_OGSKM, dims.OGSM)
  return mtf.reduce_sum(y_OGSKM, reduced_dim=dims.choices_dim)


def _slots_to_rows_op(
    y_EOGCM: mtf.Tensor, slot_OGSK: mtf.Tensor, choice_OGEC: mtf.Tensor,
    dims: MoeDims,
) -> mtf.Tensor:
  """Reads each choice's slot, 0 where it was dropped; OGSKM."""
  return mtf.slicewise(
      lambda y, slot_of, choice_of: _slots_to_rows(y, slot_of, dims),
      [y_EOGCM, slot_OGSK, choice_OGEC],
      output_shape=mtf.Shape([*dims.OGSK, dims.model_dim]),
      output_dtype=y_EOGCM.dtype, splittable_dims=dims.OG,
      name="slots_to_rows",
      grad_function=lambda op, dy_OGSKM: [
          _choices_to_slots_op(dy_OGSKM, *op.inputs[1:], dims), None, None])


def _choices_to_slots_op(
    y_OGSKM: mtf.Tensor, slot_OGSK: mtf.Tensor, choice_OGEC: mtf.Tensor,
    dims: MoeDims,
) -> mtf.Tensor:
  """The inverse of `_slots_to_rows_op`, hence its gradient; EOGCM."""
  return mtf.slicewise(
      lambda y, slot_of, choice_of: _choices_to_slots(y, choice_of, dims),
      [y_OGSKM, slot_OGSK, choice_OGEC],
      output_shape=mtf.Shape(_slots(dims)), output_dtype=y_OGSKM.dtype,
      splittable_dims=dims.OG, name="choices_to_slots",
      grad_function=lambda op, dy_EOGCM: [
          _slots_to_rows_op(dy_EOGCM, *op.inputs[1:], dims), None, None])


def _with_zero_row(rows: tf.Tensor, width: int) -> tf.Tensor:
  """Flattens to a matrix whose last row is 0: what an empty index reads."""
  flat = tf.reshape(rows, [-1, width])
  return tf.concat([flat, tf.zeros([1, width], rows.dtype)], axis=0)


def _rows_to_slots(
    x_OGSM: tf.Tensor, choice_OGEC: tf.Tensor, dims: MoeDims
) -> tf.Tensor:
  """One processor's part of `to_experts`: token rows to slots."""
  choices = dims.choices_dim.size
  token_OGEC = choice_OGEC if choices == 1 else choice_OGEC // choices
  return _pick(x_OGSM, token_OGEC, dims.group_size_dim.size, dims)


def _choices_to_slots(
    y_OGSKM: tf.Tensor, choice_OGEC: tf.Tensor, dims: MoeDims
) -> tf.Tensor:
  """One processor's part: a row for each choice to slots."""
  rows = dims.group_size_dim.size * dims.choices_dim.size
  return _pick(y_OGSKM, choice_OGEC, rows, dims)


def _pick(
    rows: tf.Tensor, index_OGEC: tf.Tensor, rows_per_group: int, dims: MoeDims
) -> tf.Tensor:
  """Reads row `index` of the index's own group, 0 past its end; EOGCM."""
  outer, groups = index_OGEC.shape.as_list()[:2]
  start = rows_per_group * tf.reshape(
      tf.range(outer * groups), [outer, groups, 1, 1])
  index_OGEC = tf.where(
      index_OGEC < rows_per_group, index_OGEC + start,
      tf.fill(tf.shape(index_OGEC), rows_per_group * outer * groups))
  index_EOGC = tf.transpose(index_OGEC, [2, 0, 1, 3])
  return tf.gather(_with_zero_row(rows, dims.model_dim.size), index_EOGC)


def _slots_to_rows(
    y_EOGCM: tf.Tensor, slot_OGSK: tf.Tensor, dims: MoeDims
) -> tf.Tensor:
  """One processor's part of `from_experts`: slots to a row for each choice."""
  experts, outer, groups, capacity, _ = y_EOGCM.shape.as_list()
  lines = outer * groups
  line = tf.reshape(tf.range(lines), [outer, groups, 1, 1])
  expert, slot = slot_OGSK // capacity, slot_OGSK % capacity
  index_OGSK = tf.where(
      expert < experts, (expert * lines + line) * capacity + slot,
      tf.fill(tf.shape(slot), experts * lines * capacity))
  return tf.gather(_with_zero_row(y_EOGCM, dims.model_dim.size), index_OGSK)


def default_dispatcher(mesh: mtf.Mesh) -> Dispatcher:
  """Einsum on TPU, gather elsewhere."""
  return EinsumDispatcher() if on_tpu(mesh) else GatherDispatcher()
