"""Attention as one operation a processor, with its own gradient."""

import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import attention as upstream

from switch_mtf.kernels import matmuls
from switch_mtf.kernels.choice import else_upstream, replaces_upstream
from switch_mtf.mesh import add_up_gradients, mesh_axis


class _Dims:
  """The dimensions of one call of attention, in the order of its matmuls."""

  def __init__(self, q, k, memory_dim, key_dim, value_dim):
    self.memory_dim, self.key_dim, self.value_dim = (
        memory_dim, key_dim, value_dim)
    self.shared = [
        d for d in q.shape.dims if d in k.shape.dims and d != key_dim]
    self.queries = [
        d for d in q.shape.dims if d not in [*self.shared, key_dim]]
    self.own = [*self.queries, memory_dim, key_dim, value_dim]
    self.q = [*self.shared, *self.queries, key_dim]
    self.k = [*self.shared, memory_dim, key_dim]
    self.v = [*self.shared, memory_dim, value_dim]
    self.logits = [*self.shared, *self.queries, memory_dim]
    self.output = [*self.shared, *self.queries, value_dim]

  def fit(self, k: mtf.Tensor, v: mtf.Tensor, bias: mtf.Tensor | None) -> bool:
    """Returns whether q, k, v and the bias have these dimensions only.

    At most one dimension may be that of queries alone.
    """
    added = [] if bias is None else bias.shape.dims
    return (len(self.queries) <= 1 and set(k.shape.dims) == set(self.k)
            and set(v.shape.dims) == set(self.v)
            and set(added) <= set(self.logits))


def _can(
    q, k, v, memory_length_dim, key_dim, value_dim, bias, dropout_rate,
    extra_logit, context, z_loss_coeff, **unused,
) -> bool:
  """Returns whether `attention` can compute a call."""
  dims = _Dims(q, k, memory_length_dim, key_dim, value_dim)
  drop = dropout_rate and context.train
  return (
      replaces_upstream(q.mesh) and extra_logit is None
      and z_loss_coeff is None and dims.fit(k, v, bias)
      and not (drop and not dims.queries)
      and _only_shared_dims_are_split(dims, context))


def _only_shared_dims_are_split(dims: _Dims, context) -> bool:
  """Returns whether every mesh axis splits a dimension of q, k and v alike."""
  layout, mesh_shape = context.model.layout, context.model.mesh_shape

  def axes(some: list[mtf.Dimension]) -> set[int]:
    return {mesh_axis(d, layout, mesh_shape)[0] for d in some} - {None}

  used = axes(dims.shared)
  return not axes(dims.own) and all(
      axis in used or dim.size == 1 for axis, dim in enumerate(
          mtf.convert_to_shape(mesh_shape or "").dims))


@else_upstream(upstream.attention, _can)
def attention(
    q: mtf.Tensor,
    k: mtf.Tensor,
    v: mtf.Tensor,
    memory_length_dim: mtf.Dimension,
    key_dim: mtf.Dimension,
    value_dim: mtf.Dimension,
    bias: mtf.Tensor | None = None,
    dropout_rate: float = 0.0,
    dropout_broadcast_dims: list[mtf.Dimension] | None = None,
    extra_logit: mtf.Tensor | float | None = None,
    context=None,
    float32_logits: bool = True,
    z_loss_coeff: float | None = None,
) -> mtf.Tensor:
  """Replaces `mesh_tensorflow.transformer.attention.attention`.

  Same numbers to float rounding; the noise of dropout is drawn alike.
  Upstream's function runs on TPU, with the attention z-loss or an extra logit,
  with other dimensions than those below, and where a mesh axis does not split
  q, k and v alike.

  Args:
    q: [batch dims, heads?, length?, d_kv] in any order - queries.
    k: [batch dims, heads?, memory_length, d_kv] in any order - keys.
    v: the dimensions of `k` - values.
    memory_length_dim: dimension over which the softmax is.
    key_dim: d_kv of queries and keys.
    value_dim: d_kv of values.
    bias: added to the logits; any of the dimensions of q and k.
    dropout_rate: rate of dropout of the attention weights.
    dropout_broadcast_dims: dimensions along which dropout is the same.
    extra_logit: see upstream.
    context: transformer.Context of the call.
    float32_logits: whether logits and softmax are computed in float32.
    z_loss_coeff: see upstream.

  Returns:
    q with `value_dim` instead of `key_dim`.
  """
  dims = _Dims(q, k, memory_length_dim, key_dim, value_dim)
  if v is k:
    # tf.gradients would give each of the two the sum of both gradients.
    k, v = mtf.identity(k), mtf.identity(v)
  if float32_logits:
    q, k = mtf.cast(q, tf.float32), mtf.cast(k, tf.float32)
  biases = [mtf.cast(x, q.dtype) for x in _summands(bias)]
  if not dims.queries:
    return _attend_one_query(q, k, v, biases, dims)
  shape = mtf.Shape(dims.logits) - (dropout_broadcast_dims or [])
  mask = (_dropout_mask(q, shape, dropout_rate)
          if dropout_rate and context.train else None)
  return _attend(q, k, v, biases, mask, dims)


def _summands(bias: mtf.Tensor | None) -> list[mtf.Tensor]:
  """Splits a bias into its summands, so that each gets its own gradient.

  The summands are the mask and the relative positions. The gradient of a
  summand is smaller than that of the sum, which is as large as the logits and
  would first be transposed to the order of the sum.
  """
  if bias is None:
    return []
  if isinstance(bias.operation, mtf.AddOperation):
    return [y for x in bias.operation.inputs for y in _summands(x)]
  return [bias]


def _dropout_mask(q: mtf.Tensor, shape: mtf.Shape, rate: float) -> mtf.Tensor:
  """Returns 0 or 1 / (1 - rate), drawn as upstream draws it."""
  return mtf.dropout(mtf.ones(q.mesh, shape, dtype=q.dtype), True, rate=rate)


def _attend(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    mask: mtf.Tensor | None, dims: _Dims,
) -> mtf.Tensor:
  """Computes `attend` on each processor."""
  output_dims = [
      dims.value_dim if d == dims.key_dim else d for d in q.shape.dims]
  extra = biases if mask is None else [*biases, mask]
  orders = [x.shape.dims for x in (q, k, v, *extra)]
  wanted = [dims.q, dims.k, dims.v] + [dims.logits] * len(extra)

  def fn(*slices: tf.Tensor) -> tf.Tensor:
    q, k, v, *more = map(arrange, slices, orders, wanted)
    y = attend(q, k, v, _sum(more[:len(biases)]),
               None if mask is None else more[-1])
    return arrange(y, dims.output, output_dims)

  return mtf.slicewise(
      fn, [q, k, v, *extra], output_shape=mtf.Shape(output_dims),
      output_dtype=v.dtype, splittable_dims=dims.shared,
      # A bias may lack dimensions that are split.
      grad_function=add_up_gradients, name="attention")


def _attend_one_query(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    dims: _Dims,
) -> mtf.Tensor:
  """Computes `attend_one_query` on each processor, for a step of decoding."""
  output_dims = [
      dims.value_dim if d == dims.key_dim else d for d in q.shape.dims]
  inputs = [q, k, v, *biases]
  orders = [x.shape.dims for x in inputs]
  wanted = [dims.q, dims.k, dims.v] + [dims.logits] * len(biases)

  def fn(*slices: tf.Tensor) -> tf.Tensor:
    q, k, v, *added = map(arrange, slices, orders, wanted)
    y = attend_one_query(q, k, v, _sum(added))
    return arrange(y, dims.output, output_dims)

  return mtf.slicewise(
      fn, inputs, output_shape=mtf.Shape(output_dims), output_dtype=v.dtype,
      splittable_dims=dims.shared, grad_function=add_up_gradients,
      name="attention_of_one")


def _sum(xs: list[tf.Tensor]) -> tf.Tensor | None:
  """Returns the sum of tensors, None if there are none."""
  return functools.reduce(tf.add, xs) if xs else None


def arrange(
    x: tf.Tensor, has: list[mtf.Dimension], wanted: list[mtf.Dimension]
) -> tf.Tensor:
  """Transposes `x` to another order of axes; a missing axis gets size 1.

  Args:
    x: slice of a tensor, on one processor.
    has: dimensions of its axes.
    wanted: dimensions of the axes of the result.
  """
  names = [d.name for d in has]
  order = [names.index(d.name) for d in wanted if d.name in names]
  if order != list(range(len(order))):
    x = tf.transpose(x, order)
  if len(order) == len(wanted):
    return x
  sizes = iter(x.shape.as_list())
  return tf.reshape(
      x, [next(sizes) if d.name in names else 1 for d in wanted])


def attend(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor,
    bias: tf.Tensor | None = None, mask: tf.Tensor | None = None,
) -> tf.Tensor:
  """Computes softmax(q k^T + bias) v; the gradient reads memory less often.

  Args:
    q: [..., length, d_kv] - queries; q, k and v have the same leading axes.
    k: [..., memory_length, d_kv] - keys.
    v: [..., memory_length, d_kv] - values.
    bias: added to the logits; broadcast to [..., length, memory_length].
    mask: factor of the weights, for dropout; broadcast like `bias`.

  Returns:
    [..., length, d_kv] - the weighted sums of values.
  """
  extra = [x for x in (bias, mask) if x is not None]

  @tf.custom_gradient
  def attention(q, k, v, *extra):
    logit_bias = extra[0] if bias is not None else None
    weight_mask = extra[-1] if mask is not None else None
    logits = tf.matmul(q, k, transpose_b=True)
    if logit_bias is not None:
      logits += logit_bias
    probs = tf.nn.softmax(logits)
    weights = tf.cast(
        probs if weight_mask is None else probs * weight_mask, v.dtype)
    y = tf.matmul(weights, v)

    def grad(dy):
      dweights = tf.cast(tf.matmul(dy, v, transpose_b=True), probs.dtype)
      if weight_mask is not None:
        dweights *= weight_mask
      # The sum over the memory of weights * dweights, without a pass over it.
      total = tf.cast(
          tf.reduce_sum(dy * y, axis=-1, keepdims=True), probs.dtype)
      dlogits = (dweights - total) * probs
      dextra = []
      if bias is not None:
        dextra.append(_sum_to(dlogits, logit_bias.shape))
      if mask is not None:
        dextra.append(tf.zeros_like(weight_mask))
      return (tf.matmul(dlogits, k),
              tf.matmul(dlogits, q, transpose_a=True),
              tf.matmul(weights, dy, transpose_a=True), *dextra)

    return y, grad

  return attention(q, k, v, *extra)


def attend_one_query(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
  """Computes `attend` for one query each, without a gradient, for decoding.

  Args:
    q: [..., d_kv] - queries; q, k and v have the same leading axes.
    k: [..., memory_length, d_kv] - keys.
    v: [..., memory_length, d_kv] - values.
    bias: added to the logits; broadcast to [..., memory_length].

  Returns:
    [..., d_kv] - the weighted sums of values.
  """
  # oneDNN takes up to twice as long for matrices this thin.
  logits = matmuls.matmul_of_eigen(q[..., None, :], k, False, True)
  if bias is not None:
    logits += bias[..., None, :]
  # The softmax by hand: oneDNN's takes longer for so few numbers.
  weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
  weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
  weights = tf.cast(weights, v.dtype)
  return matmuls.matmul_of_eigen(weights, v, False, False)[..., 0, :]


def _sum_to(x: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
  """Returns the gradient of broadcasting from `shape`, of the rank of x."""
  axes = [axis for axis, size in enumerate(shape.as_list())
          if size == 1 and x.shape[axis] != 1]
  return tf.reduce_sum(x, axis=axes, keepdims=True) if axes else x
