"""Draws random numbers that depend only on seed, step, scope and index.

A resumed run draws the numbers of an uninterrupted run, and every layout draws
the numbers of a single processor.

`uniform` hashes (seed, step, microbatch, variable scope, purpose, index of the
element). Each processor computes the numbers of its slice. On TPU the hash
takes no memory of its own; on CPU it takes three times as long as TensorFlow's
generator.

`uniform_for_upstream` draws what T5's own layers ask for, above all dropout's
numbers. On CPU and GPU it asks TensorFlow's stateless generator, which can only
draw a whole tensor, of which each processor keeps its slice.
"""

import zlib
from collections.abc import Callable
from typing import Any

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.mesh import on_tpu
from switch_mtf.upstream import training_step

# Collection of a graph whose draws depend on the step: the scopes of the draws.
_USES_STEP = "switch_mtf/draws"
# 2^32 over the golden ratio: no sum of a step and a few of it meets another.
_SPREAD = 0x9E3779B9


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
  return mtf.slicewise(
      lambda o, i, s: _hash_to_uniform(o, i, s, random_seed(), place),
      [mtf.add_n([mtf.constant(mesh, 0, dtype=tf.int32), *outer]), inner,
       _moment(mesh)],
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


def uniform_for_upstream(
    upstream: Callable[..., mtf.Tensor], mesh: mtf.Mesh, shape: mtf.Shape,
    minval: float = 0.0, maxval: float = 1.0, dtype: tf.DType = tf.float32,
    **kwargs: Any,
) -> mtf.Tensor:
  """Draws a number in [minval, maxval) for every element, as upstream asks.

  Graphs without `use_step` get upstream's draw, which goes on from draw to
  draw: decoding samples each position and batch anew.

  Args:
    upstream: `mtf.random_uniform`.
    mesh: mesh of the result.
    shape: shape of the result; any dimension may be split.
    minval: lower limit.
    maxval: upper limit.
    dtype: a floating dtype.
    **kwargs: further arguments of `upstream`.

  Returns:
    `dtype`, `shape` - the numbers.
  """
  shape = mtf.convert_to_shape(shape)
  if not tf.get_collection(_USES_STEP):
    return upstream(
        mesh, shape, minval=minval, maxval=maxval, dtype=dtype, **kwargs)
  scope = tf.get_variable_scope().name
  tf.add_to_collection(_USES_STEP, scope)
  # A scope that is entered again has the same name: its draws are counted.
  purpose = f"upstream_{tf.get_collection(_USES_STEP).count(scope)}"
  if on_tpu(mesh) or not shape.dims:
    drawn = uniform(mesh, shape.dims or [mtf.Dimension("one", 1)], purpose)
    drawn = mtf.reshape(drawn, shape)
  else:
    place = zlib.crc32(f"{scope}/{purpose}".encode())
    drawn = _Uniform(_moment(mesh), shape, place, random_seed()).outputs[0]
  return mtf.cast(drawn * (maxval - minval) + minval, dtype)


def use_step() -> None:
  """Makes `uniform_for_upstream` depend on the step in the default graph."""
  tf.add_to_collection(_USES_STEP, "")


class _Uniform(mtf.Operation):
  """An operation that draws a whole tensor and keeps each processor's slice."""

  def __init__(
      self, moment: mtf.Tensor, shape: mtf.Shape, place: int, seed: int):
    """Records its arguments; see `_moment` and `_hash_to_uniform`."""
    super().__init__([moment], name="uniform")
    self._seed = _wrap((seed ^ place) % 2**32)
    self._outputs = [mtf.Tensor(self, shape, tf.float32)]
    self._splittable_dims, self._unsplittable_dims = (
        self._initialize_all_dimensions_as_splittable())

  def lower(self, lowering: mtf.Lowering) -> None:
    """Draws the numbers in float32, [0, 1)."""
    mesh_impl, y = lowering.mesh_impl(self), self.outputs[0]
    whole, part = y.shape.to_integer_list, mesh_impl.slice_shape(y.shape)

    def draw(processor, moment: tf.Tensor) -> tf.Tensor:
      drawn = tf.random.stateless_uniform(
          whole, tf.stack([tf.constant(self._seed), moment]), alg="philox")
      return drawn if part == whole else tf.slice(
          drawn, mesh_impl.slice_begin(y.shape, processor), part)

    lowering.set_tensor_lowering(y, mesh_impl.slicewise(
        draw, mesh_impl.laid_out_pnum(), lowering.tensors[self.inputs[0]]))


def _moment(mesh: mtf.Mesh) -> mtf.Tensor:
  """Returns a number of the step and microbatch; int32 []."""
  step = mtf.import_fully_replicated(mesh, _global_step(), mtf.Shape([]))
  number = training_step.microbatch()
  return step if number is None else step + number * _wrap(_SPREAD)


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
    step: int32 [] - see `_moment`.
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
