"""Attention as one operation a processor, with its own gradient."""

import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import attention as upstream

from switch_mtf.dims import mesh_axis
from switch_mtf.kernels import matmuls
from switch_mtf.mesh import on_tpu

upstream_attention = upstream.attention


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
  """Stands for `mesh_tensorflow.transformer.attention.attention`.

  The same numbers to float rounding; the noise of dropout is drawn alike. What
  it cannot do it leaves to upstream: TPU, the attention z-loss, an extra logit,
  other dimensions than those below, an axis that does not split q, k, v alike.

  Args:
    q: [batch dims, heads?, length?, d_kv] in any order - queries.
    k: [batch dims, heads?, memory_length, d_kv] in any order - keys.
    v: the same - values.
    memory_length_dim: what the softmax is over.
    key_dim: d_kv of queries and keys.
    value_dim: d_kv of values.
    bias: added to the logits; any of the dimensions of q and k.
    dropout_rate: of the weights.
    dropout_broadcast_dims: along which all weights are dropped alike.
    extra_logit: see upstream.
    context: transformer.Context.
    float32_logits: computes logits and softmax in float32.
    z_loss_coeff: see upstream.

  Returns:
    q with `value_dim` in place of `key_dim`.
  """
  dims = _Dims(q, k, memory_length_dim, key_dim, value_dim)
  drop = bool(dropout_rate and context.train)
  if (extra_logit is not None or z_loss_coeff is not None or on_tpu(q.mesh)
      or not dims.fit(k, v, bias) or (drop and not dims.queries)
      or not _splits_what_is_shared(dims, context)):
    return upstream_attention(
        q, k, v, memory_length_dim, key_dim, value_dim, bias, dropout_rate,
        dropout_broadcast_dims, extra_logit, context, float32_logits,
        z_loss_coeff)
  if v is k:
    # tf.gradients would give each of the two the gradients of both.
    k, v = mtf.identity(k), mtf.identity(v)
  if float32_logits:
    q, k = mtf.cast(q, tf.float32), mtf.cast(k, tf.float32)
  biases = [_on_each_part(mtf.cast(x, q.dtype), dims.shared, context)
            for x in _summands(bias)]
  if not dims.queries:
    return _attend_one_query(q, k, v, biases, dims)
  shape = mtf.Shape(dims.logits) - (dropout_broadcast_dims or [])
  mask = _dropout_mask(q, shape, dropout_rate) if drop else None
  return _attend(q, k, v, biases, mask, dims)


class _Dims:
  """The dimensions of one call, in the order that matmuls want."""

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
    """Whether these are all, with at most one dimension of queries."""
    added = [] if bias is None else bias.shape.dims
    return (len(self.queries) <= 1 and set(k.shape.dims) == set(self.k)
            and set(v.shape.dims) == set(self.v)
            and set(added) <= set(self.logits))


def _summands(bias: mtf.Tensor | None) -> list[mtf.Tensor]:
  """Of which a bias is the sum: what is visible, and the relative positions.

  The gradient of each is then added up as it comes. That of their sum is as
  large as the logits, and would first be brought into the order of the sum.
  """
  if bias is None:
    return []
  if isinstance(bias.operation, mtf.AddOperation):
    return [y for x in bias.operation.inputs for y in _summands(x)]
  return [bias]


def _on_each_part(
    bias: mtf.Tensor, shared: list[mtf.Dimension], context
) -> mtf.Tensor:
  """Gives a bias an axis for each dimension that is split and that it lacks.

  One entry a processor: so that what each finds for its gradient is added up.
  """
  split = [(d, mesh_axis(d, context.model.layout, context.model.mesh_shape))
           for d in shared if d not in bias.shape.dims]
  parts = [mtf.Dimension(d.name, ways) for d, (axis, ways) in split
           if axis is not None]
  return mtf.broadcast(bias, mtf.Shape([*parts, *bias.shape.dims]))


def _splits_what_is_shared(dims: "_Dims", context) -> bool:
  """Whether each mesh axis splits a dimension of all, and nothing else."""
  layout, mesh_shape = context.model.layout, context.model.mesh_shape

  def axes(some: list[mtf.Dimension]) -> set[int]:
    return {mesh_axis(d, layout, mesh_shape)[0] for d in some} - {None}

  used = axes(dims.shared)
  return not axes(dims.own) and all(
      axis in used or dim.size == 1 for axis, dim in enumerate(
          mtf.convert_to_shape(mesh_shape or "").dims))


def _dropout_mask(q: mtf.Tensor, shape: mtf.Shape, rate: float) -> mtf.Tensor:
  """0, or what is left scaled up; drawn as upstream draws it."""
  return mtf.dropout(mtf.ones(q.mesh, shape, dtype=q.dtype), True, rate=rate)


def _attend(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    mask: mtf.Tensor | None, dims: _Dims,
) -> mtf.Tensor:
  """`attend` on each processor."""
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
      name="attention")


def _attend_one_query(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    dims: _Dims,
) -> mtf.Tensor:
  """`attend_one_query` on each processor: a step of decoding."""
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
      splittable_dims=dims.shared, name="attention_of_one")


def _sum(xs: list[tf.Tensor]) -> tf.Tensor | None:
  return functools.reduce(tf.add, xs) if xs else None


def arrange(
    x: tf.Tensor, has: list[mtf.Dimension], wanted: list[mtf.Dimension]
) -> tf.Tensor:
  """Brings axes into another order; one that is not there gets size 1."""
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
    q_BLK: tf.Tensor, k_BMK: tf.Tensor, v_BMV: tf.Tensor,
    bias: tf.Tensor | None = None, mask: tf.Tensor | None = None,
) -> tf.Tensor:
  """softmax(q k^T + bias) v, with a gradient that passes less over memory.

  Args:
    q_BLK: [..., length, d_kv] - queries; the leading axes are the same of all.
    k_BMK: [..., memory_length, d_kv] - keys.
    v_BMV: [..., memory_length, d_kv] - values.
    bias: added to the logits, to be broadcast to [..., length, memory_length].
    mask: times the weights, to be broadcast in the same way: dropout.

  Returns:
    [..., length, d_kv].
  """
  extra = [x for x in (bias, mask) if x is not None]

  @tf.custom_gradient
  def attention(q, k, v, *extra):
    bias_LM = extra[0] if bias is not None else None
    mask_LM = extra[-1] if mask is not None else None
    logits = tf.matmul(q, k, transpose_b=True)
    if bias_LM is not None:
      logits += bias_LM
    probs = tf.nn.softmax(logits)
    weights = tf.cast(
        probs if mask_LM is None else probs * mask_LM, v.dtype)
    y = tf.matmul(weights, v)

    def grad(dy):
      dweights = tf.cast(tf.matmul(dy, v, transpose_b=True), probs.dtype)
      if mask_LM is not None:
        dweights *= mask_LM
      # The sum over the memory of weights * dweights, without a pass over it.
      total = tf.cast(
          tf.reduce_sum(dy * y, axis=-1, keepdims=True), probs.dtype)
      dlogits = (dweights - total) * probs
      dextra = []
      if bias is not None:
        dextra.append(_sum_to(dlogits, bias_LM.shape))
      if mask is not None:
        dextra.append(tf.zeros_like(mask_LM))
      return (tf.matmul(dlogits, k),
              tf.matmul(dlogits, q, transpose_a=True),
              tf.matmul(weights, dy, transpose_a=True), *dextra)

    return y, grad

  return attention(q_BLK, k_BMK, v_BMV, *extra)


def attend_one_query(
    q_BK: tf.Tensor, k_BMK: tf.Tensor, v_BMV: tf.Tensor,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
  """`attend` for one query each, without a gradient: for decoding.

  Args:
    q_BK: [..., d_kv] - queries; the leading axes are the same of all.
    k_BMK: [..., memory_length, d_kv] - keys.
    v_BMV: [..., memory_length, d_kv] - values.
    bias: added to the logits, to be broadcast to [..., memory_length].

  Returns:
    [..., d_kv].
  """
  # For matrices this thin oneDNN's takes up to twice as long.
  logits = matmuls.matmul_of_eigen(q_BK[..., None, :], k_BMK, False, True)
  if bias is not None:
    logits += bias[..., None, :]
  # The softmax, for which oneDNN takes longer where there is this little.
  weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
  weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
  weights = tf.cast(weights, v_BMV.dtype)
  return matmuls.matmul_of_eigen(weights, v_BMV, False, False)[..., 0, :]


def _sum_to(x: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
  """The gradient of broadcasting from `shape`, which has the rank of x."""
  axes = [axis for axis, size in enumerate(shape.as_list())
          if size == 1 and x.shape[axis] != 1]
  return tf.reduce_sum(x, axis=axes, keepdims=True) if axes else x
