"""Chooses the fastest of TensorFlow's matmul kernels, as measured on CPUs.

Functions of `tf.Tensor`s, each equal to the TensorFlow function it stands for
to float rounding. `kernels/__init__.py` puts `einsum` in the place of
upstream's; the layers call the others.
"""

import collections
import math

import tensorflow.compat.v1 as tf
from numpy.core._multiarray_umath import __cpu_features__


def einsum(equation: str, *slices: tf.Tensor) -> tf.Tensor:
  """Computes `tf.einsum` of two tensors as one (batched) matmul.

  `tf.einsum` itself transposes where a matmul could read a matrix as its
  transpose.

  Args:
    equation: equation such as "exm,emf->exf".
    *slices: tensors, as many as the equation has.

  Returns:
    The result of `tf.einsum`.
  """
  plan = _plan(equation, slices)
  if plan is None:
    return tf.einsum(equation, *slices)
  a, b = (slices[1], slices[0]) if plan.swapped else slices
  sizes = _sizes(equation, slices)

  def size(letters: str) -> list[int]:
    return [sizes[letter] for letter in letters]

  def matrices(x: tf.Tensor, has: str, wanted: tuple[str, str, str]):
    if has != "".join(wanted):
      x = tf.transpose(x, [has.index(letter) for letter in "".join(wanted)])
    batch = [math.prod(size(wanted[0]))] if wanted[0] else []
    return tf.reshape(x, [*batch, *(math.prod(size(w)) for w in wanted[1:])])

  y = matmul(matrices(a, plan.a_has, plan.a_wanted),
             matrices(b, plan.b_has, plan.b_wanted),
             plan.a_transposed, plan.b_transposed)
  y = tf.reshape(y, size(plan.y_has))
  if plan.y_has != plan.y_wanted:
    y = tf.transpose(y, [plan.y_has.index(letter) for letter in plan.y_wanted])
  return y


# With AVX-512 oneDNN computes weight gradients with all threads, which makes a
# step 5 to 8 % faster; without it, with one thread.
AVX512 = __cpu_features__.get("AVX512F", False)
# The number of summed entries from which TensorFlow's own kernel is faster
# without AVX-512. With fewer, for experts of few tokens, it is slower.
LONG = 128
# Up to FEW_ROWS rows, such as decoded tokens, oneDNN multiplies by a large
# matrix up to a third faster in parts of CACHED entries, which stay in cache.
FEW_ROWS, CACHED = 16, 2**19
# The largest number of choices for which reading only the kernels of the chosen
# experts is faster than filling slots.
FEW_CHOICES = 32


def matmul(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> tf.Tensor:
  """Computes `tf.matmul` by the fastest of TensorFlow's kernels.

  Args:
    a: [..., n, k], or [..., k, n] if it is `a_transposed`.
    b: [..., k, m], or [..., m, k] if it is `b_transposed`.
    a_transposed: whether to read `a` as its transpose.
    b_transposed: whether to read `b` as its transpose.

  Returns:
    [..., n, m] - the product.
  """
  if a_transposed and a.shape[-2] >= LONG and not AVX512:
    return matmul_of_eigen(a, b, a_transposed, b_transposed)
  if AVX512 and b.shape.rank == 2 and _faster_as_batch(
      a, b, a_transposed, b_transposed):
    return tf.matmul(a[None], b[None], transpose_a=a_transposed,
                     transpose_b=b_transposed)[0]
  if b_transposed and not a_transposed and b.shape.rank == 2 and (
      1 < a.shape[0] <= FEW_ROWS and b.shape.num_elements() > CACHED):
    return _matmul_in_parts(a, b)
  return tf.matmul(a, b, transpose_a=a_transposed, transpose_b=b_transposed)


def _faster_as_batch(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> bool:
  """Returns whether oneDNN's kernel for batches is faster with a batch of one.

  Measured with 4,096 rows on two cores. The gradient of a 1,024 x 256 weight:
  16.3 -> 12.0 ms; with as many columns as rows, or more, no faster. A product
  with the transpose of a 256 x 1,024 weight: 11.3 -> 9.6 ms; of a 768 x 3,072
  weight: slower.
  """
  if a_transposed:
    return not b_transposed and 2 * a.shape[1] >= 3 * b.shape[1]
  columns, summed = b.shape.as_list()
  return b_transposed and a.shape[0] > FEW_ROWS and summed >= 2 * columns and (
      summed * columns <= CACHED)


def _matmul_in_parts(a_NK: tf.Tensor, b_MK: tf.Tensor) -> tf.Tensor:
  """Multiplies few rows by the transpose of `b_MK`, `CACHED` entries a time."""
  rows, summed = b_MK.shape.as_list()
  part = max(1, CACHED // summed)
  parts = tf.split(b_MK, [
      min(part, rows - start) for start in range(0, rows, part)])
  return tf.concat(
      [tf.matmul(a_NK, b, transpose_b=True) for b in parts], axis=-1)


def matmul_of_eigen(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> tf.Tensor:
  """Computes `matmul` by the kernel that TensorFlow has without oneDNN."""
  if a.dtype != tf.float32:
    return tf.matmul(a, b, transpose_a=a_transposed, transpose_b=b_transposed)
  # V3, unlike V2, is never left to oneDNN.
  return tf.raw_ops.BatchMatMulV3(
      x=a, y=b, adj_x=a_transposed, adj_y=b_transposed, Tout=a.dtype)


_Plan = collections.namedtuple(
    "_Plan", "swapped a_has a_wanted a_transposed b_has b_wanted b_transposed "
    "y_has y_wanted")


def _plan(equation: str, slices: tuple[tf.Tensor, ...]) -> _Plan | None:
  """Returns how to compute an einsum as a matmul; None if it is not one."""
  if len(slices) != 2 or any(
      x.shape.rank is None or None in x.shape.as_list() for x in slices):
    return None
  inputs, y = equation.replace(" ", "").split("->")
  a, b = inputs.split(",")
  shared = [letter for letter in a if letter in b]
  batch = "".join(letter for letter in y if letter in shared)
  summed = "".join(letter for letter in shared if letter not in y)
  a_free = "".join(letter for letter in a if letter not in b)
  b_free = "".join(letter for letter in b if letter not in a)
  if not (summed and a_free and b_free) or set(a_free + b_free) - set(y) or (
      len(set(a)) < len(a) or len(set(b)) < len(b)):
    return None
  swapped = y.replace(b_free, "").endswith(a_free) and (
      y.index(b_free[0]) < y.index(a_free[0]))
  if swapped:
    a, b, a_free, b_free = b, a, b_free, a_free
    # In the order of the matrix that is read without a transpose.
    summed = "".join(letter for letter in a if letter in summed)
  a_transposed = a == batch + summed + a_free
  b_transposed = b != batch + summed + b_free
  return _Plan(
      swapped,
      a, (batch, summed, a_free) if a_transposed else (batch, a_free, summed),
      a_transposed,
      b, (batch, b_free, summed) if b_transposed else (batch, summed, b_free),
      b_transposed, batch + a_free + b_free, y)


def _sizes(equation: str, slices: tuple[tf.Tensor, ...]) -> dict[str, int]:
  """Returns the size of each letter of an equation."""
  names = equation.replace(" ", "").split("->")[0].split(",")
  return {letter: size for name, x in zip(names, slices, strict=True)
          for letter, size in zip(name, x.shape.as_list(), strict=True)}


def chosen_matmul(
    x_RI: tf.Tensor, expert_R: tf.Tensor, kernel_EIO: tf.Tensor
) -> tf.Tensor:
  """Multiplies each row by the matrix of its expert.

  Args:
    x_RI: [rows, inputs].
    expert_R: int32 [rows] - the expert of each row.
    kernel_EIO: [experts, inputs, outputs].

  Returns:
    [rows, outputs] - the products.
  """
  if x_RI.shape.as_list()[0] <= FEW_CHOICES:
    return _matmul_of_each_row(x_RI, expert_R, kernel_EIO)
  # The rows of an expert are brought together, however many they are.
  experts = kernel_EIO.shape.as_list()[0]
  order_R = tf.argsort(expert_R, stable=True)
  sizes_E = tf.math.bincount(expert_R, minlength=experts, maxlength=experts)
  parts = tf.split(tf.gather(x_RI, order_R), sizes_E, num=experts)
  products_RO = tf.concat([
      tf.matmul(part_PI, _kernel_of(kernel_EIO, expert))
      for expert, part_PI in enumerate(parts)], axis=0)
  return tf.gather(products_RO, tf.math.invert_permutation(order_R))


def _matmul_of_each_row(
    x_RI: tf.Tensor, expert_R: tf.Tensor, kernel_EIO: tf.Tensor
) -> tf.Tensor:
  """Multiplies each of a few rows by the matrix of its expert.

  Reads only the matrices of those experts.
  """
  # Without AVX-512 oneDNN's kernel takes up to one and a half times as long.
  multiply = matmul if AVX512 else matmul_of_eigen
  return tf.concat([
      multiply(x_RI[row:row + 1], _kernel_of(kernel_EIO, expert_R[row]),
               False, False)
      for row in range(expert_R.shape.as_list()[0])], axis=0)


def _kernel_of(kernel_EIO: tf.Tensor, expert: tf.Tensor | int) -> tf.Tensor:
  """Returns the matrix of one expert, a view: it is a slice of axis 0."""
  _, inputs, outputs = kernel_EIO.shape.as_list()
  return tf.reshape(
      tf.slice(kernel_EIO, [expert, 0, 0], [1, inputs, outputs]),
      [inputs, outputs])
