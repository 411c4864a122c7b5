"""Draws random numbers that depend only on seed, step, scope and index.

Each number is a hash of (seed, step, variable scope, purpose, index of the
element). So a resumed run draws the numbers of an uninterrupted run, and every
layout draws the numbers of a single processor. TensorFlow's stateless
generators guarantee only the former: a processor that holds a slice of a tensor
cannot ask them for the numbers of that slice.
"""

import zlib

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors


@gin.configurable("random_seed")
def random_seed(value: int = 0) -> int:
  """Returns the seed of a run's initialisation, jitter and dropout."""
  errors.require_whole("random_seed", at_least=-2**63, value=value)
  return value


def uniform(
    mesh: mtf.Mesh, dims: list[mtf.Dimension], purpose: str
) -> mtf.Tensor:
  """Draws a number in [0, 1) for every element.

  Args:
    mesh: mesh of the result.
    dims: dimensions of the result, one or more; any of them may be split.
    purpose: name that tells two draws of one layer apart, such as "jitter".

  Returns:
    float32 `dims` - multiples of 2^-24.
  """
  place = zlib.crc32(f"{tf.get_variable_scope().name}/{purpose}".encode())
  index, stride = {}, 1
  for dim in reversed(dims):
    # int32 wraps around in very large tensors, which is harmless in a hash.
    index[dim] = _wrap(stride) * mtf.range(mesh, dim, tf.int32)
    stride *= dim.size
  *outer, inner = (index[dim] for dim in dims)
  step = mtf.import_fully_replicated(mesh, _global_step(), mtf.Shape([]))
  return mtf.slicewise(
      lambda o, i, s: _hash_to_uniform(o, i, s, random_seed(), place),
      [mtf.add_n([mtf.constant(mesh, 0, dtype=tf.int32), *outer]), inner, step],
      output_shape=mtf.Shape(dims), output_dtype=tf.float32,
      splittable_dims=dims, grad_function=0, name=purpose)


def dropout_mask(x: mtf.Tensor, rate: float, purpose: str) -> mtf.Tensor:
  """Returns a dropout mask, to be multiplied with `x`.

  Args:
    x: the tensor to mask.
    rate: probability of dropping an element, in [0, 1).
    purpose: as in `uniform`.

  Returns:
    Shape and dtype of `x` - 0 with probability `rate`, else 1 / (1 - rate).
  """
  drawn = uniform(x.mesh, x.shape.dims, purpose)
  kept = mtf.cast(mtf.greater_equal(drawn, rate), tf.float32)
  return mtf.cast(kept / (1.0 - rate), x.dtype)


def _global_step() -> tf.Tensor:
  """Returns the global step, or 0 if the graph has none; int32 []."""
  step = tf.train.get_global_step()
  return tf.constant(0) if step is None else tf.cast(step, tf.int32)


def _wrap(stride: int) -> int:
  """Returns `stride` modulo 2^32, as a signed 32-bit number."""
  return (stride + 2**31) % 2**32 - 2**31


def _hash_to_uniform(
    outer: tf.Tensor, inner: tf.Tensor, step: tf.Tensor, seed: int, place: int
) -> tf.Tensor:
  """Hashes index, step, seed and place to numbers in [0, 1); see `_mix`.

  Args:
    outer: int32 [...] - the index without the last axis's part.
    inner: int32 [n] - the last axis's part of the index.
    step: int32 [] - the global step.
    seed: any integer; only its low 32 bits count.
    place: 32-bit hash of variable scope and purpose.

  Returns:
    float32 [..., n] - multiples of 2^-24.
  """
  key = _mix(tf.constant(seed % 2**32, tf.uint32))
  key = _mix(key + tf.bitcast(step, tf.uint32))
  key = _mix(key + tf.constant(place, tf.uint32))
  # The smaller tensors are added first, for only one pass over all elements.
  index = (tf.bitcast(outer, tf.uint32) + key)[..., None] + tf.bitcast(
      inner, tf.uint32)
  bits = _mix(_mix(index) ^ key)
  high = tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32))
  return tf.cast(high, tf.float32) * 2.0**-24


def _mix(x: tf.Tensor) -> tf.Tensor:
  """Applies the 32-bit finaliser of MurmurHash3 to each element.

  Each input bit flips half of the output bits.

  Austin Appleby, https://github.com/aappleby/smhasher, `fmix32`, public domain.
  """
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x ^= tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))
    x *= tf.constant(factor, tf.uint32)
  return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))
