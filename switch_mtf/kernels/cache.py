"""The cache of decoding: a step writes one position, in place.

Upstream computes the whole cache anew for each token, and keeps it in an order
in which each token transposes it.
"""

import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf.kernels.attention import arrange
from switch_mtf.kernels.choice import else_upstream, replaces_upstream
from switch_mtf.mesh import mesh_axis


def _can_write(layer, context, x, **unused) -> bool:
  """Returns whether `self_attention` can compute a call."""
  axis, _ = mesh_axis(layer.memory_length(context), context.model.layout,
                      context.model.mesh_shape)
  return (replaces_upstream(x.mesh) and axis is None
          and not layer.hyperprompt_length_encoder
          and not layer.hyperprompt_length_decoder
          and context.mode in ("first_part", "incremental"))


@else_upstream(transformer_layers.SelfAttention.call, _can_write)
def self_attention(
    layer: transformer_layers.SelfAttention, context: transformer.Context,
    x: mtf.Tensor, losses: list[mtf.Tensor] | None = None,
) -> mtf.Tensor:
  """Replaces `SelfAttention.call`: a step writes one position of the cache.

  Projections, bias and attention are the layer's own. Upstream's method runs on
  TPU, with hyper-prompts, and where a mesh axis splits the positions of the
  cache.

  Args:
    layer: the attention layer.
    context: context of the stack.
    x: [batch dims, length?, d_model].
    losses: see upstream.

  Returns:
    The output of the layer, shape of `x`.
  """
  memory_dim = layer.memory_length(context)
  if context.mode == "first_part":
    known = len(context.new_states)
    y = self_attention.upstream(layer, context, x, losses)
    # `_write` adds to zeros: the positions after the prompt must be empty.
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


def _can_arrange(context, x, **unused) -> bool:
  """Returns whether `enc_dec_attention` can arrange the memory of a call."""
  return replaces_upstream(x.mesh) and context.mode == "first_part"


@else_upstream(transformer_layers.EncDecAttention.call, _can_arrange)
def enc_dec_attention(
    layer: transformer_layers.EncDecAttention, context: transformer.Context,
    x: mtf.Tensor, losses: list[mtf.Tensor] | None = None,
) -> mtf.Tensor:
  """Replaces `EncDecAttention.call`: stores keys and values in decode layout.

  Args and result are those of `self_attention`.
  """
  y = enc_dec_attention.upstream(layer, context, x, losses)
  *kept, memory_dim = context.constant_states[-1]
  context.constant_states[-1] = (
      *(_decode_layout(one, memory_dim) for one in kept), memory_dim)
  return y


def _decode_layout(
    x: mtf.Tensor, memory_dim: mtf.Dimension) -> mtf.Tensor:
  """Transposes to the layout that decoding reads: memory_length before d_kv."""
  others = [d for d in x.shape.dims if d != memory_dim]
  return mtf.transpose(x, mtf.Shape([*others[:-1], memory_dim, others[-1]]))


def _write(
    memory: mtf.Tensor, new: mtf.Tensor, position: mtf.Tensor,
    memory_dim: mtf.Dimension,
) -> mtf.Tensor:
  """Writes a new entry into each sequence's memory, at its own position.

  The memory must be zero at that position and after it.
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
      name="write_cache")


def write_cache(
    memory: tf.Tensor, new: tf.Tensor, position: tf.Tensor
) -> tf.Tensor:
  """Writes one entry into each memory, in place if nothing else reads it.

  TensorFlow's scatter that updates always copies the whole memory; the scatter
  that adds does not.

  Args:
    memory: [memories, memory_length, entry]; zero where entries are written.
    new: [memories, entry] - the entries.
    position: int32 [memories] - where to write, not negative; an entry past the
      end is not written.

  Returns:
    The new memories, same shape.
  """
  count, length, _ = memory.shape.as_list()
  at = tf.stack(
      [tf.range(count), tf.minimum(position, length - 1)], axis=-1)
  inside = tf.cast(position < length, new.dtype)[:, None]
  return tf.raw_ops.ScatterNdNonAliasingAdd(
      input=memory, indices=at, updates=new * inside)
