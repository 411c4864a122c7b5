"""Self-attention whose projections are Switch layers: appendix A, Table 10.

In place of T5's `SelfAttention` in a layer list. Mask, relative bias, cache of
incremental decoding and output projection are those of `SelfAttention`.
"""

from collections.abc import Callable

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import attention, transformer_layers

from switch_mtf import errors
from switch_mtf.dims import heads_dim
from switch_mtf.layers.switch_ffn import SwitchFFN

RELATIVE_ATTENTION = (None, "bias", "bias_shared", "contextual")


def linear_experts() -> SwitchFFN:
  """Returns a Switch layer whose experts are linear maps."""
  return SwitchFFN(hidden_size=None)


@gin.configurable
class SwitchSelfAttention(transformer_layers.SelfAttention):
  """Self-attention in which each token chooses its weights.

  A token's expert in one Switch layer makes its query, its expert in another
  makes its key, which is its value too. Variables, under
  `.../SwitchSelfAttention/`: `q/...` and `kv/...` as in `SwitchFFN`, with
  heads * d_kv outputs; `o` and `relative_attention_bias` as in `SelfAttention`.

  Switch Transformer, https://arxiv.org/abs/2101.03961, appendix A. Unlike
  mesh_tensorflow's `ExpertsSelfAttention`, the two have a router each.
  """

  def __init__(
      self,
      num_heads: int = 8,
      key_value_size: int = 128,
      dropout_rate: float = 0.0,
      relative_attention_type: str | None = None,
      relative_attention_num_buckets: int = 32,
      projection: Callable[[], SwitchFFN] = linear_experts,
  ):
    """Records the hyperparameters.

    Args:
      num_heads: number of heads; this and the next four are as in
        `SelfAttention`.
      key_value_size: features of a head's query, key and value.
      dropout_rate: rate of dropout of the attention weights.
      relative_attention_type: None, "bias", "bias_shared" or "contextual".
      relative_attention_num_buckets: number of buckets of the relative bias.
      projection: makes a Switch layer: one for queries and one for keys. Its
        experts are linear by default; for feed-forward ones bind
        `@attention/SwitchFFN`, with the sizes under that scope.

    Raises:
      ValueError: if an argument is out of its range.
    """
    who = "SwitchSelfAttention"
    errors.require_whole(
        who, num_heads=num_heads, key_value_size=key_value_size)
    errors.require_number(who, at_least=0, below=1, dropout_rate=dropout_rate)
    errors.require_one_of(
        who, RELATIVE_ATTENTION,
        relative_attention_type=relative_attention_type)
    # With fewer an encoder has no bucket for distances that are not exact.
    errors.require_whole(
        who, at_least=4,
        relative_attention_num_buckets=relative_attention_num_buckets)
    errors.require_instance(
        who, Callable, "@attention/SwitchFFN, without brackets",
        projection=projection)
    super().__init__(
        num_heads=num_heads, key_value_size=key_value_size, shared_kv=True,
        dropout_rate=dropout_rate,
        relative_attention_type=relative_attention_type,
        relative_attention_num_buckets=relative_attention_num_buckets)
    # Made here, as gin's scopes (encoder, decoder) hold while layers are made.
    self.query_projection = projection()
    self.memory_projection = projection()
    errors.require_instance(
        who, SwitchFFN, "what makes one, such as @attention/SwitchFFN",
        projection=self.query_projection)

  def make_params(self, context):
    """See the base class."""
    return _SwitchProjections(self, context)


class _SwitchProjections(attention.AttentionParams):
  """Query and key through Switch layers, the output as upstream."""

  def __init__(self, layer: SwitchSelfAttention, context):
    model_dim = context.model.model_dim
    # Upstream leaves the dimension of a single head out.
    heads = [heads_dim(layer.num_heads)] if layer.num_heads > 1 else None
    super().__init__(
        context.mesh, query_input_dim=model_dim, memory_input_dim=model_dim,
        output_dim=model_dim, key_dim=layer.kv_dim, value_dim=layer.kv_dim,
        query_heads_dims=heads, memory_heads_dims=heads,
        variable_dtype=context.variable_dtype, shared_kv=True,
        ensemble_dim=context.model.ensemble_dim, make_attention_vars=False)
    self._layer, self._context = layer, context

  def compute_q(self, query_antecedent):
    """See the base class; scaled here, as no initialiser can fold it in."""
    q = self._project("q", query_antecedent)
    return q * self.key_dim.size ** -0.5

  def compute_kv(self, memory_antecedent):
    """See the base class."""
    context = self._context
    memory_length = self._layer.memory_length(context)
    if memory_length not in memory_antecedent.shape.dims:  # one position
      return self._project("kv", memory_antecedent)
    # The layer knows padding by the tokens' own length dimension.
    x = mtf.replace_dimensions(
        memory_antecedent, memory_length, context.length_dim)
    return self._layer.rename_length_to_memory_length(
        self._project("kv", x), context)

  def _project(self, name: str, x: mtf.Tensor) -> mtf.Tensor:
    """Returns the outputs of one Switch layer, split into heads."""
    layer = (self._layer.query_projection if name == "q"
             else self._layer.memory_projection)
    combined = mtf.Dimension(self.q_dims[0].name, mtf.Shape(self.q_dims).size)
    with tf.variable_scope(name):
      y = layer.call(self._context, x, output_dim=combined)
    return mtf.replace_dimensions(y, combined, self.q_dims)
