"""Sums of squares for Adafactor, in one pass over memory each.

Functions of `tf.Tensor`s: what one processor does.
"""

from collections.abc import Callable, Sequence

import tensorflow.compat.v1 as tf

# Entries of a part that stays in the processor's cache between two operations.
CACHED = 2**21
# More parts cost more to build than they save: Switch-C's variables would have
# 2,048 each.
MOST_PARTS = 32


def row_and_column_sums(x_EMF: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Sums of the squares of each row and of each column of matrices.

  Args:
    x_EMF: [..., rows, columns].

  Returns:
    [..., rows] and [..., columns].
  """
  def sums(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    squares = tf.square(x)
    ones = tf.ones([*x.shape.as_list()[:-2], 1, x.shape[-2]], x.dtype)
    # As a matmul, since reduce_sum is slow over any axis but the last.
    return (tf.reduce_sum(squares, axis=-1),
            tf.squeeze(tf.matmul(ones, squares), axis=-2))

  rows, columns = zip(*_for_each_part(sums, x_EMF), strict=True)
  return _concat(rows), _concat(columns)


def weighted_sum_of_squares(
    x_EMF: tf.Tensor, row_EM: tf.Tensor, column_EF: tf.Tensor) -> tf.Tensor:
  """The sum of all squares times the weights of their rows and columns.

  Args:
    x_EMF: [..., rows, columns].
    row_EM: [..., rows].
    column_EF: [..., columns].

  Returns:
    A scalar.
  """
  def total(x: tf.Tensor, row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
    along = tf.matmul(tf.square(x), column[..., None])
    return tf.reduce_sum(along * row[..., None])

  return tf.add_n(_for_each_part(total, x_EMF, row_EM, column_EF))


def _for_each_part(fn: Callable, x: tf.Tensor, *others: tf.Tensor) -> list:
  """Calls fn with parts of large tensors that are small enough for the cache.

  Args:
    fn: takes as many tensors as are given, returns one or several.
    x: [E, M, F] and larger than `CACHED`, in at most `MOST_PARTS`; anything
      else is one part.
    *others: with the same first axis.

  Returns:
    What fn returns for each part, in order.
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
  return tf.concat(parts, axis=0) if len(parts) > 1 else parts[0]
