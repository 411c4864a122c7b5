"""Moves tokens to the slots of their experts, and results back.

The dispatchers share one contract and are equal to float rounding, forward and
backward. `EinsumDispatcher` multiplies by one-hot masks, as the paper does: a
matmul is fast on TPU, and a gather is not. `GatherDispatcher` moves rows by
index, on CPU and GPU. `_InPlaceDispatcher` moves nothing: for the few tokens of
a decoding step, and where no token is dropped. Each direction has one
all-to-all, `to_experts_side` or `to_groups_side`; no other communication
happens here.
"""

import abc

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.dims import MoeDims, check_shape
from switch_mtf.kernels.matmuls import FEW_CHOICES
from switch_mtf.layers.routing import Routing
from switch_mtf.mesh import on_tpu
from switch_mtf.upstream import FAST


def to_experts_side(x_EOGCM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Splits over experts what was split over groups: all-to-all number one.

  Where experts are not split, or are split by another mesh axis than groups,
  this is local: each processor keeps the slots of its groups.

  Args:
    x_EOGCM: [experts_unsplit, outer_batch, batch, expert_capacity, d_model].
    dims: sizes of the layer's dimensions.

  Returns:
    [experts, expert_tokens, d_model] - groups and slots as one axis, so that
      the experts are one batched matmul; outer_batch stays between experts and
      expert_tokens where experts are replicated.
  """
  here_EOGCM = mtf.reshape(x_EOGCM, _slots_at_experts(dims, dims.model_dim))
  return mtf.reshape(here_EOGCM, dims.EXM)


def to_groups_side(y_EXN: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Splits over groups what was split over experts: all-to-all number two.

  The inverse of `to_experts_side`, with the same shapes but for the features.
  Where experts are split by another mesh axis than groups, it gathers the
  results over that axis.
  """
  here_EOGCN = mtf.reshape(y_EXN, _slots_at_experts(dims, dims.output_dim))
  return mtf.reshape(here_EOGCN, _slots(dims, dims.output_dim))


def _slots(dims: MoeDims, features: mtf.Dimension) -> list[mtf.Dimension]:
  """Returns the dimensions of the slots while the groups are split."""
  return [dims.experts_unsplit_dim, dims.outer_batch_dim, dims.num_groups_dim,
          dims.capacity_dim, features]


def _slots_at_experts(
    dims: MoeDims, features: mtf.Dimension) -> list[mtf.Dimension]:
  """Returns the dimensions of the slots while the experts are split."""
  return [dims.experts_dim, dims.outer_batch_dim,
          dims.num_groups_at_experts_dim, dims.capacity_dim, features]


class Dispatcher(abc.ABC):
  """The contract of a dispatcher."""

  @abc.abstractmethod
  def to_experts(
      self, x_OGSM: mtf.Tensor, routing: Routing, dims: MoeDims
  ) -> mtf.Tensor:
    """Puts each token into the slots of its choices.

    Args:
      x_OGSM: [outer_batch, batch, group, d_model] - tokens.
      routing: expert and slot of each choice.
      dims: sizes of the layer's dimensions.

    Returns:
      [experts, expert_tokens, d_model], split over experts; empty slots are 0.
    """

  @abc.abstractmethod
  def from_experts(
      self, y_EXN: mtf.Tensor, routing: Routing, dims: MoeDims
  ) -> mtf.Tensor:
    """Sums the results of each token's choices, times their weights.

    Args:
      y_EXN: [experts, expert_tokens, d_model], split over experts - results.
      routing: expert, slot and weight of each choice.
      dims: sizes of the layer's dimensions.

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
    x_EOGCM = mtf.einsum(
        [x_OGSM, dispatch_OGSEC], mtf.Shape(_slots(dims, dims.model_dim)))
    return to_experts_side(x_EOGCM, dims)

  def from_experts(self, y_EXN, routing, dims):
    """See the base class."""
    check_shape(y_EXN, dims.EXN, "EinsumDispatcher y")
    combine_OGSEC = self._mask(
        routing, dims, y_EXN.dtype, weight_OGSK=routing.weight_OGSK)
    y_EOGCN = to_groups_side(y_EXN, dims)
    return mtf.einsum([y_EOGCN, combine_OGSEC], mtf.Shape(dims.OGSN))

  def _mask(self, routing, dims, dtype, weight_OGSK=None):
    """Returns 1, or the weight, where a token holds a slot; `dtype` OGSEC."""
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

  The map from choice to slot is injective, so the gradient of a gather is the
  gather by the inverse index: nothing is ever scattered or summed.
  """

  def to_experts(self, x_OGSM, routing, dims):
    """See the base class."""
    check_shape(x_OGSM, dims.OGSM, "GatherDispatcher x")
    x_EOGCM = mtf.slicewise(
        lambda x, slot_of, choice_of: _tokens_to_slots(x, choice_of, dims),
        [x_OGSM, *indices(routing, dims)],
        output_shape=mtf.Shape(_slots(dims, dims.model_dim)),
        output_dtype=x_OGSM.dtype,
        splittable_dims=dims.OG, name="rows_to_slots",
        grad_function=lambda op, dy_EOGCM: [
            _sum_choices(_slots_to_choices_op(
                dy_EOGCM, *op.inputs[1:], dims, dims.model_dim),
                         dims, dims.model_dim), None, None])
    return to_experts_side(x_EOGCM, dims)

  def from_experts(self, y_EXN, routing, dims):
    """See the base class."""
    check_shape(y_EXN, dims.EXN, "GatherDispatcher y")
    y_OGSKN = _slots_to_choices_op(
        to_groups_side(y_EXN, dims), *indices(routing, dims), dims,
        dims.output_dim)
    return _combine(y_OGSKN, routing, dims)


class _InPlaceDispatcher(Dispatcher):
  """Leaves each token where it is: its experts' kernels come to the token.

  For one processor, without a gradient. Decoding a few sequences takes as long
  as reading weights takes, and most of many experts have not been chosen by any
  token: `apply_experts` reads none of theirs. Where no token is dropped, slots
  for all tokens at every expert would be as much work as running all experts.
  """

  def to_experts(self, x_OGSM, routing, dims):
    """See the base class; returns a row for each choice, OGSKM."""
    check_shape(x_OGSM, dims.OGSM, "in-place dispatch x")
    return mtf.broadcast(x_OGSM, mtf.Shape(dims.OGSKM))

  def from_experts(self, y_OGSKN, routing, dims):
    """See the base class; takes the result of each choice, OGSKN."""
    check_shape(
        y_OGSKN, [*dims.OGSK, dims.output_dim], "in-place dispatch y")
    return _combine(y_OGSKN, routing, dims)


@gin.configurable
def drop_nothing(value: bool = False) -> bool:
  """Sets whether predictions and scores drop no token.

  If tokens are dropped, the answer to one input depends on the other inputs of
  its batch, which compete for the same slots. `gin/runs/` binds True for runs
  that answer a user's inputs. The loss that a run evaluates, and its training,
  keep their capacity factors.

  Args:
    value: True to give every token a slot in prediction and scoring.

  Returns:
    The argument.
  """
  errors.require_flag("drop_nothing", value=value)
  return value


def drops_nothing(context) -> bool:
  """Returns whether a call of a layer drops no token, by `drop_nothing`.

  Args:
    context: transformer.Context of the call.
  """
  modes = tf.estimator.ModeKeys
  return context.mode not in (modes.TRAIN, modes.EVAL) and drop_nothing()


def default_dispatcher(context, dims: MoeDims) -> Dispatcher:
  """Returns the fastest dispatcher for a call of a layer.

  Args:
    context: transformer.Context of the call.
    dims: sizes of the layer's dimensions.
  """
  if on_tpu(context.mesh):
    return EinsumDispatcher()
  processors = mtf.convert_to_shape(context.model.mesh_shape or "").size
  few = (context.mode == "incremental"
         and mtf.Shape(dims.OGSK).size <= FEW_CHOICES)
  if FAST and processors == 1 and (few or drops_nothing(context)):
    return _InPlaceDispatcher()
  return GatherDispatcher()


def _combine(
    y_OGSKN: mtf.Tensor, routing: Routing, dims: MoeDims) -> mtf.Tensor:
  """Sums the results of a token's choices, times their weights; OGSN."""
  weight_OGSK = mtf.cast(routing.weight_OGSK, y_OGSKN.dtype)
  return _sum_choices(y_OGSKN * weight_OGSK, dims, dims.output_dim)


def _sum_choices(
    y: mtf.Tensor, dims: MoeDims, features: mtf.Dimension) -> mtf.Tensor:
  """Sums over the choices of a token: OGSK and features to OGS and features."""
  if dims.choices_dim.size == 1:
    return mtf.reshape(y, [*dims.OGS, features])
  return mtf.reduce_sum(y, reduced_dim=dims.choices_dim)


def indices(routing: Routing, dims: MoeDims) -> list[mtf.Tensor]:
  """Returns the map from choices to slots and its inverse.

  Args:
    routing: expert and slot of each choice.
    dims: sizes of the layer's dimensions.

  Returns:
    slot_OGSK: int32 - expert * capacity + slot of each choice, experts *
      capacity for a dropped one.
    choice_OGEC: int32 - s * K + k of the choice that holds each slot,
      group_size * choices for an empty one.
  """
  experts, capacity = dims.experts_dim.size, dims.capacity_dim.size
  choices = dims.group_size_dim.size * dims.choices_dim.size

  def index(
      expert: tf.Tensor, slot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    outer, groups = expert.shape.as_list()[:2]
    lines = outer * groups
    # All dropped choices take one extra place per group, which is cut off.
    flat = tf.where(
        slot < capacity, expert * capacity + slot,
        tf.fill(tf.shape(slot), experts * capacity))
    place = tf.reshape(flat, [lines, choices])
    line = tf.broadcast_to(tf.range(lines)[:, None], [lines, choices])
    empty = tf.fill([lines, experts * capacity + 1], choices)
    taken = tf.tensor_scatter_nd_update(
        empty, tf.stack([line, place], axis=-1),
        tf.broadcast_to(tf.range(choices), [lines, choices]))
    return flat, tf.reshape(taken[:, :-1], [outer, groups, experts, capacity])

  return mtf.slicewise(
      index, [routing.expert_OGSK, routing.slot_OGSK],
      output_shape=[mtf.Shape(dims.OGSK), mtf.Shape(dims.OGEC)],
      output_dtype=[tf.int32, tf.int32], splittable_dims=dims.OG,
      grad_function=0, name="dispatch_indices")


def _slots_to_choices_op(
    y_EOGC: mtf.Tensor, slot_OGSK: mtf.Tensor, choice_OGEC: mtf.Tensor,
    dims: MoeDims, features: mtf.Dimension,
) -> mtf.Tensor:
  """Reads each choice's slot, 0 where it was dropped; OGSK and features."""
  return mtf.slicewise(
      lambda y, slot_of, choice_of: _slots_to_choices(y, slot_of),
      [y_EOGC, slot_OGSK, choice_OGEC],
      output_shape=mtf.Shape([*dims.OGSK, features]),
      output_dtype=y_EOGC.dtype, splittable_dims=dims.OG,
      name="slots_to_rows",
      grad_function=lambda op, dy_OGSK: [
          _choices_to_slots_op(dy_OGSK, *op.inputs[1:], dims, features),
          None, None])


def _choices_to_slots_op(
    y_OGSK: mtf.Tensor, slot_OGSK: mtf.Tensor, choice_OGEC: mtf.Tensor,
    dims: MoeDims, features: mtf.Dimension,
) -> mtf.Tensor:
  """Moves each choice's row into its slot: the gradient of the reading.

  The result has the dimensions EOGC and features.
  """
  return mtf.slicewise(
      lambda y, slot_of, choice_of: _choices_to_slots(y, choice_of, dims),
      [y_OGSK, slot_OGSK, choice_OGEC],
      output_shape=mtf.Shape(_slots(dims, features)),
      output_dtype=y_OGSK.dtype, splittable_dims=dims.OG,
      name="choices_to_slots",
      grad_function=lambda op, dy_EOGC: [
          _slots_to_choices_op(dy_EOGC, *op.inputs[1:], dims, features),
          None, None])


# What one processor computes.


def _tokens_to_slots(
    x_OGSM: tf.Tensor, choice_OGEC: tf.Tensor, dims: MoeDims
) -> tf.Tensor:
  """Copies each token's row into the slots of its choices."""
  choices = dims.choices_dim.size
  token_OGEC = choice_OGEC if choices == 1 else choice_OGEC // choices
  return _pick(x_OGSM, token_OGEC, dims.group_size_dim.size)


def _choices_to_slots(
    y_OGSK: tf.Tensor, choice_OGEC: tf.Tensor, dims: MoeDims
) -> tf.Tensor:
  """Moves each choice's row into its slot."""
  rows = dims.group_size_dim.size * dims.choices_dim.size
  return _pick(y_OGSK, choice_OGEC, rows)


def _pick(
    rows: tf.Tensor, index_OGEC: tf.Tensor, rows_per_group: int) -> tf.Tensor:
  """Reads row `index` of the index's own group, 0 past the group's end."""
  outer, groups = index_OGEC.shape.as_list()[:2]
  start = rows_per_group * tf.reshape(
      tf.range(outer * groups), [outer, groups, 1, 1])
  index_OGEC = tf.where(
      index_OGEC < rows_per_group, index_OGEC + start,
      tf.fill(tf.shape(index_OGEC), rows_per_group * outer * groups))
  index_EOGC = tf.transpose(index_OGEC, [2, 0, 1, 3])
  return tf.gather(_with_zero_row(rows), index_EOGC)


def _slots_to_choices(y_EOGC: tf.Tensor, slot_OGSK: tf.Tensor) -> tf.Tensor:
  """Reads the slot of each choice."""
  experts, outer, groups, capacity, _ = y_EOGC.shape.as_list()
  lines = outer * groups
  line = tf.reshape(tf.range(lines), [outer, groups, 1, 1])
  expert, slot = slot_OGSK // capacity, slot_OGSK % capacity
  index_OGSK = tf.where(
      expert < experts, (expert * lines + line) * capacity + slot,
      tf.fill(tf.shape(slot), experts * lines * capacity))
  return tf.gather(_with_zero_row(y_EOGC), index_OGSK)


def _with_zero_row(rows: tf.Tensor) -> tf.Tensor:
  """Flattens to a matrix whose last row is 0, for indices of nothing."""
  width = rows.shape.as_list()[-1]
  flat = tf.reshape(rows, [-1, width])
  return tf.concat([flat, tf.zeros([1, width], rows.dtype)], axis=0)
