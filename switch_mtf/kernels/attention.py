"""Attention on CPU and GPU: one operation a processor, a cache that stays."""

import functools
import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import attention as upstream
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf import kernels
from switch_mtf.dims import mesh_axis, on_tpu

upstream_attention = upstream.attention
upstream_self_attention = transformer_layers.SelfAttention.call
upstream_enc_dec_attention = transformer_layers.EncDecAttention.call


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


def self_attention(
    layer: transformer_layers.SelfAttention, context: transformer.Context,
    x: mtf.Tensor, losses: list[mtf.Tensor] | None = None,
) -> mtf.Tensor:
  """Stands for `SelfAttention.call`: decoding writes one position of the cache.

  Upstream computes all of the cache anew for each token, and has it in an order
  in which each token transposes it. Everything but that is upstream's, and so
  is all of it on TPU, with hyper-prompts and where the cache is split by
  position.

  Args:
    layer: the layer.
    context: of the stack.
    x: [batch dims, length?, d_model].
    losses: see upstream.

  Returns:
    The shape of `x`.
  """
  memory_dim = layer.memory_length(context)
  axis, _ = mesh_axis(
      memory_dim, context.model.layout, context.model.mesh_shape)
  if (on_tpu(x.mesh) or axis is not None or layer.hyperprompt_length_encoder
      or layer.hyperprompt_length_decoder or context.mode not in (
          "first_part", "incremental")):
    return upstream_self_attention(layer, context, x, losses)
  if context.mode == "first_part":
    known = len(context.new_states)
    y = upstream_self_attention(layer, context, x, losses)
    # What comes from there on is to be written: `_remember` wants zeros.
    given = mtf.less(mtf.range(context.mesh, memory_dim, tf.int32),
                     context.initial_position)
    context.new_states[known:] = [
        _memory_by_memory(state * mtf.cast(given, state.dtype), memory_dim)
        for state in context.new_states[known:]]
    return y
  params = layer.make_params(context)
  q = params.compute_q(x)
  new = ([params.compute_kv(x)] if layer.shared_kv
         else [params.compute_k(x), params.compute_v(x)])
  states = [
      _remember(old, entry, context.position, memory_dim)
      for old, entry in zip(context.get_states(len(new)), new, strict=True)]
  context.record_new_states(states)
  bias = layer.compute_bias(
      context, mtf.range(context.mesh, memory_dim, tf.int32), x,
      params.query_heads_dims, q)
  o = layer.attention_fn(
      q, states[0], states[-1], context=context, memory_length_dim=memory_dim,
      key_dim=layer.kv_dim, value_dim=layer.kv_dim, bias=bias,
      z_loss_coeff=layer.z_loss_coeff,
      **layer.attention_kwargs_from_context(context))
  y = params.compute_output(
      o, output_shape=layer.expected_attention_output_shape(x, params))
  return layer.layer_output_from_attention_output(context, y, losses)


def enc_dec_attention(
    layer: transformer_layers.EncDecAttention, context: transformer.Context,
    x: mtf.Tensor, losses: list[mtf.Tensor] | None = None,
) -> mtf.Tensor:
  """Stands for `EncDecAttention.call`: keeps keys and values as decoding reads.

  What it takes and returns is what `self_attention` does.
  """
  y = upstream_enc_dec_attention(layer, context, x, losses)
  if context.mode == "first_part" and not on_tpu(x.mesh):
    *kept, memory_dim = context.constant_states[-1]
    context.constant_states[-1] = (
        *(_memory_by_memory(one, memory_dim) for one in kept), memory_dim)
  return y


def _memory_by_memory(
    x: mtf.Tensor, memory_dim: mtf.Dimension) -> mtf.Tensor:
  """Puts the memory next to d_kv: [..., heads?, memory_length, d_kv]."""
  others = [d for d in x.shape.dims if d != memory_dim]
  return mtf.transpose(x, mtf.Shape([*others[:-1], memory_dim, others[-1]]))


def _remember(
    memory: mtf.Tensor, new: mtf.Tensor, position: mtf.Tensor,
    memory_dim: mtf.Dimension,
) -> mtf.Tensor:
  """The memory with a new entry at a position, of each sequence its own.

  Nothing has been written there, or past it.
  """
  dims = memory.shape.dims
  at = dims.index(memory_dim)
  sequences, entry = dims[:at], dims[at + 1:]
  inputs = [memory, new, mtf.broadcast(position, mtf.Shape(sequences))]

  def fn(memory: tf.Tensor, new: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    sizes = memory.shape.as_list()
    count = math.prod(sizes[:at])
    new = _arrange(new, inputs[1].shape.dims, [*sequences, *entry])
    return tf.reshape(kernels.remember(
        tf.reshape(memory, [count, sizes[at], -1]),
        tf.reshape(new, [count, -1]), tf.reshape(position, [count])), sizes)

  return mtf.slicewise(
      fn, inputs, splittable_dims=[*sequences, *entry], grad_function=0,
      name="remember")


def _dropout_mask(q: mtf.Tensor, shape: mtf.Shape, rate: float) -> mtf.Tensor:
  """0, or what is left scaled up; drawn as upstream draws it."""
  return mtf.dropout(mtf.ones(q.mesh, shape, dtype=q.dtype), True, rate=rate)


def _splits_what_is_shared(dims: "_Dims", context) -> bool:
  """Whether each mesh axis splits a dimension of all, and nothing else."""
  layout, mesh_shape = context.model.layout, context.model.mesh_shape

  def axes(some: list[mtf.Dimension]) -> set[int]:
    return {mesh_axis(d, layout, mesh_shape)[0] for d in some} - {None}

  used = axes(dims.shared)
  return not axes(dims.own) and all(
      axis in used or dim.size == 1 for axis, dim in enumerate(
          mtf.convert_to_shape(mesh_shape or "").dims))


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


def _attend(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    mask: mtf.Tensor | None, dims: _Dims,
) -> mtf.Tensor:
  """`kernels.attend` on each processor."""
  output_dims = [
      dims.value_dim if d == dims.key_dim else d for d in q.shape.dims]
  extra = biases if mask is None else [*biases, mask]
  orders = [x.shape.dims for x in (q, k, v, *extra)]
  wanted = [dims.q, dims.k, dims.v] + [dims.logits] * len(extra)

  def fn(*slices: tf.Tensor) -> tf.Tensor:
    q, k, v, *more = map(_arrange, slices, orders, wanted)
    y = kernels.attend(q, k, v, _sum(more[:len(biases)]),
                       None if mask is None else more[-1])
    return _arrange(y, dims.output, output_dims)

  return mtf.slicewise(
      fn, [q, k, v, *extra], output_shape=mtf.Shape(output_dims),
      output_dtype=v.dtype, splittable_dims=dims.shared,
      name="attention")


def _attend_one_query(
    q: mtf.Tensor, k: mtf.Tensor, v: mtf.Tensor, biases: list[mtf.Tensor],
    dims: _Dims,
) -> mtf.Tensor:
  """`kernels.attend_one_query` on each processor: a step of decoding."""
  output_dims = [
      dims.value_dim if d == dims.key_dim else d for d in q.shape.dims]
  inputs = [q, k, v, *biases]
  orders = [x.shape.dims for x in inputs]
  wanted = [dims.q, dims.k, dims.v] + [dims.logits] * len(biases)

  def fn(*slices: tf.Tensor) -> tf.Tensor:
    q, k, v, *added = map(_arrange, slices, orders, wanted)
    y = kernels.attend_one_query(q, k, v, _sum(added))
    return _arrange(y, dims.output, output_dims)

  return mtf.slicewise(
      fn, inputs, output_shape=mtf.Shape(output_dims), output_dtype=v.dtype,
      splittable_dims=dims.shared, name="attention_of_one")


def _sum(xs: list[tf.Tensor]) -> tf.Tensor | None:
  return functools.reduce(tf.add, xs) if xs else None


def _arrange(
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
