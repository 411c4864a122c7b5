"""Adafactor in fewer passes over memory."""

from collections.abc import Callable, Sequence

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow import optimize

from switch_mtf.kernels.choice import else_upstream, replaces_upstream
from switch_mtf.mesh import add_up

# Entries of a part that stays in the processor's cache between two operations.
CACHED = 2**21
# More parts cost more to build than they save: Switch-C's variables would have
# 2,048 each.
MOST_PARTS = 32


def _can_update(self, grad, var) -> bool:
  """Returns whether `FewPassAdafactor.apply_grad` can update a variable."""
  dims = None if grad is None else self._factored_dims(var.shape)
  # The factored dimensions must be the last two, in whichever order.
  return bool(dims) and set(dims) == set(var.shape.dims[-2:]) and not (
      self._beta1 or self._stacked_dim_names) and replaces_upstream(var.mesh)


@gin.configurable
class FewPassAdafactor(optimize.AdafactorOptimizer):
  """Upstream's Adafactor in fewer passes over memory.

  Same options, slots and numbers. With many experts a step is mostly the
  optimizer's. Two passes are saved: the squares of the update, which clipping
  needs, follow from the gradient's squares and the factors; and squares are
  summed part by part instead of being written to memory. Upstream's update runs
  on TPU, with momentum, with stacked dimensions, and for variables that are not
  factored along their last two dimensions.

  Shazeer and Stern, Adafactor, https://arxiv.org/abs/1804.04235, algorithm 4.
  """

  @else_upstream(optimize.AdafactorOptimizer.apply_grad, _can_update)
  def apply_grad(
      self, grad: mtf.Tensor | None, var: mtf.Variable
  ) -> list[mtf.Operation]:
    """See the base class.

    Args:
      grad: gradient of the loss by `var`; None if there is none.
      var: variable to update.

    Returns:
      The updates.
    """
    dims = self._factored_dims(var.shape)
    last_two = var.shape.dims[-2:]
    slot_of = {
        dim: mtf.get_variable(
            var.mesh, f"{var.name}_slot_{name}", var.shape - dim,
            initializer=tf.zeros_initializer(), trainable=False)
        for name, dim in zip(("vr", "vc"), dims, strict=True)}
    row_slot, col_slot = slot_of[last_two[1]], slot_of[last_two[0]]
    with tf.variable_scope(f"{var.name}/adafactor"):
      grad = mtf.to_float(grad)
      row_sum, col_sum = add_up(
          row_and_column_sums, [grad], [row_slot.shape, col_slot.shape])
      new_row = self._averaged(row_slot, row_sum / last_two[1].size)
      new_col = self._averaged(col_slot, col_sum / last_two[0].size)
      row_factor = mtf.reduce_mean(new_row, reduced_dim=last_two[0]) / new_row
      col_factor = mtf.reciprocal(new_col)
      scale = self._scale(var) / self._clipping(grad, row_factor, col_factor)
      update = grad * (mtf.sqrt(row_factor) * scale) * mtf.sqrt(col_factor)
      return [mtf.assign(row_slot, new_row), mtf.assign(col_slot, new_col),
              mtf.assign_sub(var, update)]

  def _averaged(self, slot: mtf.Variable, mean: mtf.Tensor) -> mtf.Tensor:
    """Returns the new value of an accumulator of squared gradients."""
    return slot * self._decay_rate + (
        mean + self._epsilon1) * (1.0 - self._decay_rate)

  def _scale(self, var: mtf.Variable) -> mtf.Tensor | tf.Tensor:
    """Returns the learning rate times the variable's own scale."""
    if not self._multiply_by_parameter_scale or any(
        name in var.name for name in self._exclude_from_parameter_scale):
      return self._learning_rate
    total, = add_up(lambda x: 2.0 * tf.nn.l2_loss(x),
                    [mtf.to_float(var.value)], [mtf.Shape([])])
    mean = total / var.shape.size
    return mtf.maximum(mtf.sqrt(mean), self._epsilon2) * self._learning_rate

  def _clipping(
      self, grad: mtf.Tensor, row_factor: mtf.Tensor, col_factor: mtf.Tensor
  ) -> mtf.Tensor | float:
    """Returns the divisor of the update, from the squares of its factors."""
    if self._clipping_threshold is None:
      return 1.0
    total, = add_up(
        weighted_sum_of_squares, [grad, row_factor, col_factor],
        [mtf.Shape([])])
    mean = total / grad.shape.size
    return mtf.maximum(1.0, mtf.sqrt(mean) / self._clipping_threshold)


def row_and_column_sums(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Sums the squares of each row and of each column of matrices.

  Args:
    x: [..., rows, columns].

  Returns:
    The sums, [..., rows] and [..., columns].
  """
  def sums(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    squares = tf.square(x)
    ones = tf.ones([*x.shape.as_list()[:-2], 1, x.shape[-2]], x.dtype)
    # As a matmul, since reduce_sum is slow over any axis but the last.
    return (tf.reduce_sum(squares, axis=-1),
            tf.squeeze(tf.matmul(ones, squares), axis=-2))

  rows, columns = zip(*_for_each_part(sums, x), strict=True)
  return _concat(rows), _concat(columns)


def weighted_sum_of_squares(
    x: tf.Tensor, row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
  """Sums all squares times the weights of their rows and columns.

  Args:
    x: [..., rows, columns].
    row: [..., rows].
    column: [..., columns].

  Returns:
    [] - the sum.
  """
  def total(x: tf.Tensor, row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
    along = tf.matmul(tf.square(x), column[..., None])
    return tf.reduce_sum(along * row[..., None])

  return tf.add_n(_for_each_part(total, x, row, column))


def _for_each_part(fn: Callable, x: tf.Tensor, *others: tf.Tensor) -> list:
  """Calls fn with parts of large tensors that are small enough for the cache.

  Args:
    fn: takes as many tensors as are given, returns one or several.
    x: [experts, rows, columns] and larger than `CACHED`, split into at most
      `MOST_PARTS`; anything else is one part.
    *others: with the same first axis.

  Returns:
    The results for each part, in order.
  """
  parts, size = 1, x.shape.as_list()[0]
  while x.shape.rank > 2 and size % (2 * parts) == 0 and (
      parts < MOST_PARTS and x.shape.num_elements() > parts * CACHED):
    parts *= 2
  if parts == 1:
    return [fn(x, *others)]
  results = []
  for part in zip(*(tf.split(y, parts) for y in (x, *others)), strict=True):
    # One after the other: TensorFlow would compute all first squares first.
    with tf.control_dependencies(tf.nest.flatten(results[-1:])):
      results.append(fn(*part))
  return results


def _concat(parts: Sequence[tf.Tensor]) -> tf.Tensor:
  """Joins parts along their first axis."""
  return tf.concat(parts, axis=0) if len(parts) > 1 else parts[0]
