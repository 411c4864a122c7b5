"""The Switch feed-forward layer: joins router, dispatcher and experts.

Put it where a T5 layer list has `DenseReluDense`. What a token's way through it
is made of: `routing.py` (where to), `dispatch.py` (the way), `experts.py` (what
happens there), `losses.py` (what keeps it balanced).
"""

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer

from switch_mtf.dims import MoeDims
from switch_mtf.layers import summaries
from switch_mtf.layers.dispatch import Dispatcher, default_dispatcher
from switch_mtf.layers.experts import expert_ffn
from switch_mtf.layers.routing import Router, SwitchRouter


@gin.configurable
class SwitchFFN(transformer.TransformerLayer):
  """A feed-forward layer of which each token uses one expert.

  Switch Transformer, https://arxiv.org/abs/2101.03961, section 2. Variables,
  under `.../SwitchFFN/`: `router/kernel` [d_model, experts], `wi/kernel`
  [experts, d_model, d_ff] (`wi_0`, `wi_1` with two activations), `wo/kernel`
  [experts, d_ff, d_model].
  """

  def __init__(
      self,
      num_experts: int = 8,
      hidden_size: int = 2048,
      activation: str | list[str] = "relu",
      group_size: int = 1024,
      capacity_factor_train: float = 1.25,
      capacity_factor_eval: float = 2.0,
      min_capacity: int = 4,
      dropout_rate: float = 0.0,
      load_balancing_coef: float = 1e-2,
      router: Router | None = None,
      dispatcher: Dispatcher | None = None,
  ):
    """Records the hyperparameters.

    Args:
      num_experts: experts of the layer.
      hidden_size: hidden units of one expert.
      activation: see `expert_ffn`.
      group_size: tokens that compete for slots; must divide the tokens of each
        processor, exactly. A call with fewer tokens is one group.
      capacity_factor_train: slots of all experts over tokens, in training.
      capacity_factor_eval: the same in evaluation and scoring. Decoding drops
        nothing.
      min_capacity: lower bound of an expert's slots for one group.
      dropout_rate: expert dropout, on the hidden units.
      load_balancing_coef: alpha of equation 4. Losses of layers are added up.
      router: a `Router`; SwitchRouter() by default.
      dispatcher: a `Dispatcher`; by default einsum on TPU, gather elsewhere.

    Raises:
      ValueError: if a number is out of its range.
    """
    _check_range("num_experts", num_experts, num_experts >= 1, "at least 1")
    _check_range("group_size", group_size, group_size >= 1, "at least 1")
    _check_range("min_capacity", min_capacity, min_capacity >= 1, "at least 1")
    _check_range(
        "dropout_rate", dropout_rate, 0 <= dropout_rate < 1, "in [0, 1)")
    for name, factor in (("capacity_factor_train", capacity_factor_train),
                         ("capacity_factor_eval", capacity_factor_eval)):
      _check_range(name, factor, factor > 0, "greater than 0")
    self.num_experts = num_experts
    self.hidden_size = hidden_size
    self.activation = activation
    self.group_size = group_size
    self.capacity_factor_train = capacity_factor_train
    self.capacity_factor_eval = capacity_factor_eval
    self.min_capacity = min_capacity
    self.dropout_rate = dropout_rate
    self.load_balancing_coef = load_balancing_coef
    self.router = router or SwitchRouter()
    self.dispatcher = dispatcher

  def call(
      self, context: transformer.Context, x: mtf.Tensor
  ) -> mtf.Tensor:
    """Applies the layer.

    Args:
      context: of the stack; losses are appended to `context.losses`.
      x: [outer_batch?, batch, ..., d_model] - all between are tokens.

    Returns:
      Same shape and dtype as `x`; exactly 0 for padding and for tokens that
        found their expert full.

    Raises:
      ValueError: if tokens, groups or experts do not divide (see `MoeDims`).
    """
    dims = self._dims(context, x.shape)
    x_OGSM = mtf.reshape(x, dims.OGSM)
    nonpadding_OGS = _nonpadding(context, x, dims)
    dispatcher = self.dispatcher or default_dispatcher(x.mesh)

    routing = self.router(x_OGSM, nonpadding_OGS, dims, context)
    h_EXM = dispatcher.to_experts(x_OGSM, routing, dims)
    h_EXM = expert_ffn(
        h_EXM, dims, activation=self.activation,
        dropout_rate=self.dropout_rate, train=context.train,
        variable_dtype=context.variable_dtype)
    y_OGSM = dispatcher.from_experts(h_EXM, routing, dims)

    self._add_losses(context, routing.losses)
    summaries.record(context, {**routing.metrics, **routing.losses})
    return mtf.reshape(y_OGSM, x.shape)

  def _dims(self, context: transformer.Context, x_shape: mtf.Shape) -> MoeDims:
    """Sizes of this call."""
    train = context.train
    return MoeDims.create(
        x_shape,
        num_experts=self.num_experts,
        hidden_size=self.hidden_size,
        group_size=self.group_size,
        capacity_factor=(
            self.capacity_factor_train if train else self.capacity_factor_eval),
        min_capacity=self.min_capacity,
        decoding=context.mode == "incremental",
        layout=context.model.layout,
        mesh_shape=context.model.mesh_shape)

  def _add_losses(
      self, context: transformer.Context, losses: dict[str, mtf.Tensor]
  ) -> None:
    """Scales each loss by its coefficient, once, and adds it to the model's.

    Microbatches add up their losses, so each contributes its share of a mean.
    """
    if context.losses is None:
      return
    scale = self.load_balancing_coef / (context.num_microbatches or 1)
    context.losses.append(
        mtf.cast(losses["load_balancing_loss"] * scale,
                 context.activation_dtype))


def _nonpadding(
    context: transformer.Context, x: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """1 for a real token, 0 for padding; float32 OGS."""
  token_dims = x.shape.dims[:-1]
  nonpadding = context.nonpadding
  if not isinstance(nonpadding, mtf.Tensor):  # None, or 1: no padding
    return mtf.ones(x.mesh, mtf.Shape(dims.OGS))
  nonpadding = mtf.broadcast(mtf.to_float(nonpadding), mtf.Shape(token_dims))
  return mtf.reshape(nonpadding, dims.OGS)


def _check_range(name: str, value: float, legal: bool, what: str) -> None:
  """Raises ValueError unless `legal`."""
  if not legal:
    raise ValueError(
        f"SwitchFFN: {name} must be {what}, with {name}={value}. Set "
        f"SwitchFFN.{name}.")
