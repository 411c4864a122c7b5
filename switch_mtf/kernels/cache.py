"""The cache of decoding: one position is written in place, in reading order."""

import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf.kernels.attention import arrange
from switch_mtf.mesh import mesh_axis, on_tpu

upstream_self_attention = transformer_layers.SelfAttention.call
upstream_enc_dec_attention = transformer_layers.EncDecAttention.call


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
    # What comes from there on is to be written: `_write` wants zeros.
    given = mtf.less(mtf.range(context.mesh, memory_dim, tf.int32),
                     context.initial_position)
    context.new_states[known:] = [
        _decode_layout(state * mtf.cast(given, state.dtype), memory_dim)
        for state in context.new_states[known:]]
    return y
  params = layer.make_params(context)
  q = params.compute_q(x)
  new = ([params.compute_kv(x)] if layer.shared_kv
         else [params.compute_k(x), params.compute_v(x)])
  states = [
      _write(old, entry, context.position, memory_dim)
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
        *(_decode_layout(one, memory_dim) for one in kept), memory_dim)
  return y


def _decode_layout(
    x: mtf.Tensor, memory_dim: mtf.Dimension) -> mtf.Tensor:
  """Puts the memory next to d_kv: [..., heads?, memory_length, d_kv]."""
  others = [d for d in x.shape.dims if d != memory_dim]
  return mtf.transpose(x, mtf.Shape([*others[:-1], memory_dim, others[-1]]))


def _write(
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
    new = arrange(new, inputs[1].shape.dims, [*sequences, *entry])
    return tf.reshape(write_cache(
        tf.reshape(memory, [count, sizes[at], -1]),
        tf.reshape(new, [count, -1]), tf.reshape(position, [count])), sizes)

  return mtf.slicewise(
      fn, inputs, splittable_dims=[*sequences, *entry], grad_function=0,
      name="remember")


def write_cache(
    memory_NLR: tf.Tensor, new_NR: tf.Tensor, position_N: tf.Tensor
) -> tf.Tensor:
  """Writes one entry into each memory, in place where nobody else reads it.

  TensorFlow's scatter that updates always copies all of the memory; the one
  that adds does not.

  Args:
    memory_NLR: [memories, memory_length, entry], of which the entries to be
      written are zero.
    new_NR: [memories, entry].
    position_N: int32 [memories], not negative; past the end nothing is written.

  Returns:
    The new memories, of the same shape.
  """
  count, length, _ = memory_NLR.shape.as_list()
  at = tf.stack(
      [tf.range(count), tf.minimum(position_N, length - 1)], axis=-1)
  inside = tf.cast(position_N < length, new_NR.dtype)[:, None]
  return tf.raw_ops.ScatterNdNonAliasingAdd(
      input=memory_NLR, indices=at, updates=new_NR * inside)
