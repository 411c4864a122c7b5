"""Random numbers that depend on nothing but a seed, a step, a place, an index.

Each number is a hash of (seed, step, variable scope, purpose, index of the
element), so a resumed run draws what the uninterrupted one would have drawn,
and any layout draws what one processor would have drawn. TensorFlow's stateless
generators promise the first only: a processor that holds a slice cannot ask
them for the numbers of that slice.
"""

import zlib

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors


@gin.configurable("random_seed")
def random_seed(value: int = 0) -> int:
  """The seed of a run: initialisation, jitter and dropout follow from it."""
  errors.require_whole("random_seed", at_least=-2**63, value=value)
  return value


def uniform(
    mesh: mtf.Mesh, dims: list[mtf.Dimension], purpose: str
) -> mtf.Tensor:
  """Draws a number in [0, 1) for every element.

  Args:
    mesh: the mesh.
    dims: dimensions of the result, one or more; any of them may be split.
    purpose: tells two draws of one layer apart, such as "jitter".

  Returns:
    float32 `dims` - multiples of 2^-24.
  """
  place = zlib.crc32(f"{tf.get_variable_scope().name}/{purpose}".encode())
  index, stride = {}, 1
  for dim in reversed(dims):
    # int32 wraps around in very large tensors. That is harmless in a hash.
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
  """0 with probability `rate`, else 1 / (1 - rate); shape and dtype of `x`.

  Args:
    x: what the mask is for.
    rate: in [0, 1).
    purpose: as in `uniform`.
  """
  drawn = uniform(x.mesh, x.shape.dims, purpose)
  kept = mtf.cast(mtf.greater_equal(drawn, rate), tf.float32)
  return mtf.cast(kept / (1.0 - rate), x.dtype)


def _global_step() -> tf.Tensor:
  """The step being run, 0 where nobody counts; int32 []."""
  step = tf.train.get_global_step()
  return tf.constant(0) if step is None else tf.cast(step, tf.int32)


def _wrap(stride: int) -> int:
  """`stride` modulo 2^32, as a signed 32-bit number."""
  return (stride + 2**31) % 2**32 - 2**31


def _hash_to_uniform(
    outer: tf.Tensor, inner: tf.Tensor, step: tf.Tensor, seed: int, place: int
) -> tf.Tensor:
  """Mixes the four 32-bit inputs; see `_mix`.

  Args:
    outer: int32 [...] - the index but for the last axis' part.
    inner: int32 [n] - its part.
    step: int32 [].
    seed: any number.
    place: 32 bits.

  Returns:
    float32 [..., n].
  """
  key = _mix(tf.constant(seed % 2**32, tf.uint32))
  key = _mix(key + tf.bitcast(step, tf.uint32))
  key = _mix(key + tf.constant(place, tf.uint32))
  # What is small is added up first: only one pass over all elements.
  index = (tf.bitcast(outer, tf.uint32) + key)[..., None] + tf.bitcast(
      inner, tf.uint32)
  bits = _mix(_mix(index) ^ key)
  high = tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32))
  return tf.cast(high, tf.float32) * 2.0**-24


def _mix(x: tf.Tensor) -> tf.Tensor:
  """The 32-bit finaliser of MurmurHash3: each input bit flips half the output.

  Austin Appleby, https://github.com/aappleby/smhasher, `fmix32`, public domain.
  """
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x ^= tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))
    x *= tf.constant(factor, tf.uint32)
  return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))
