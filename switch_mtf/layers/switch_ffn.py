"""The Switch feed-forward layer: joins router, dispatcher and experts.

Put it where a T5 layer list has `DenseReluDense`. What a token's way through it
is made of: `routing.py` (where to), `dispatch.py` (the way), `experts.py` (what
happens there), `losses.py` (what keeps it balanced).
"""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf import errors
from switch_mtf.dims import MoeDims
from switch_mtf.layers import summaries
from switch_mtf.layers.dispatch import Dispatcher, default_dispatcher
from switch_mtf.layers.experts import (
  ACTIVATIONS,
  FEW_CHOICES,
  chosen_experts,
  expert_ffn,
  expert_linear,
)
from switch_mtf.layers.routing import Router, SwitchRouter
from switch_mtf.mesh import on_tpu


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
      hidden_size: int | None = 2048,
      activation: str | list[str] = "relu",
      group_size: int = 1024,
      capacity_factor_train: float | None = 1.25,
      capacity_factor_eval: float | None = 2.0,
      min_capacity: int = 4,
      dropout_rate: float = 0.0,
      load_balancing_coef: float = 1e-2,
      router_z_coef: float = 0.0,
      router: Router | None = None,
      dispatcher: Dispatcher | None = None,
  ):
    """Records the hyperparameters.

    Args:
      num_experts: experts of the layer.
      hidden_size: hidden units of one expert; None makes an expert one linear
        map.
      activation: see `expert_ffn`.
      group_size: tokens that compete for slots; must divide the tokens of each
        processor, exactly. A call with fewer tokens is one group.
      capacity_factor_train: slots of all experts over tokens, in training;
        None drops nothing, at the cost of a slot for every token and expert.
      capacity_factor_eval: the same in evaluation and scoring. Decoding drops
        nothing, so that only with None scores agree with it exactly.
      min_capacity: lower bound of an expert's slots for one group.
      dropout_rate: expert dropout, on the hidden units.
      load_balancing_coef: alpha of equation 4. Losses of layers are added up.
      router_z_coef: of the router z-loss; ST-MoE takes 1e-3.
      router: a `Router`; SwitchRouter() by default.
      dispatcher: a `Dispatcher`; by default einsum on TPU, gather elsewhere.

    Raises:
      ValueError: if an option is not what it can be.
    """
    if not isinstance(activation, list | tuple):
      activation = [activation]
    self.num_experts = num_experts
    self.hidden_size = hidden_size
    self.activation = list(activation)
    self.group_size = group_size
    self.capacity_factor_train = capacity_factor_train
    self.capacity_factor_eval = capacity_factor_eval
    self.min_capacity = min_capacity
    self.dropout_rate = dropout_rate
    self.load_balancing_coef = load_balancing_coef
    self.router_z_coef = router_z_coef
    self.router = SwitchRouter() if router is None else router
    self.dispatcher = dispatcher
    _check_options(vars(self))

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
    return self.project(context, x, x.shape.dims[-1])

  def project(
      self, context: transformer.Context, x: mtf.Tensor,
      output_dim: mtf.Dimension,
  ) -> mtf.Tensor:
    """Like `call`, to `output_dim` in place of d_model.

    Args:
      context: as in `call`, like `x`.
      x: [outer_batch?, batch, ..., d_model].
      output_dim: of the results.

    Returns:
      [outer_batch?, batch, ..., output_dim].

    Raises:
      ValueError: as `call`.
    """
    dims = self._dims(context, x.shape)
    x_OGSM = mtf.reshape(x, dims.OGSM)
    nonpadding_OGS = _nonpadding(context, x, dims)
    dispatcher = self.dispatcher or default_dispatcher(x.mesh)
    output_dims = dims.with_model_size(output_dim.size)

    routing = self.router(x_OGSM, nonpadding_OGS, dims, context)
    if _few_choices(context, dims):
      y_OGSM = chosen_experts(
          x_OGSM, routing.expert_OGSK, routing.weight_OGSK, dims, output_dim,
          activation=self.activation if self.hidden_size else [],
          variable_dtype=context.variable_dtype)
    else:
      h_EXM = dispatcher.to_experts(x_OGSM, routing, dims)
      h_EXM = self._experts(h_EXM, dims, output_dims.model_dim, context)
      y_OGSM = dispatcher.from_experts(h_EXM, routing, output_dims)

    self._add_losses(context, routing.losses)
    summaries.record(context, {**routing.metrics, **routing.losses})
    return mtf.reshape(y_OGSM, [*x.shape.dims[:-1], output_dim])

  def _experts(
      self, x_EXM: mtf.Tensor, dims: MoeDims, output_dim: mtf.Dimension,
      context: transformer.Context,
  ) -> mtf.Tensor:
    """What happens in the experts."""
    if self.hidden_size is None:
      return expert_linear(
          x_EXM, dims, output_dim, variable_dtype=context.variable_dtype)
    return expert_ffn(
        x_EXM, dims, output_dim, activation=self.activation,
        dropout_rate=self.dropout_rate, train=context.train,
        variable_dtype=context.variable_dtype)

  def _dims(self, context: transformer.Context, x_shape: mtf.Shape) -> MoeDims:
    """Sizes of this call."""
    train = context.train
    return MoeDims.create(
        x_shape,
        num_experts=self.num_experts,
        hidden_size=self.hidden_size or x_shape.dims[-1].size,
        group_size=self.group_size,
        capacity_factor=(
            self.capacity_factor_train if train else self.capacity_factor_eval),
        min_capacity=self.min_capacity,
        num_choices=self.router.num_choices(self.num_experts),
        decoding=context.mode == "incremental",
        layout=context.model.layout,
        mesh_shape=context.model.mesh_shape,
        scope=_gin_scope())

  def _add_losses(
      self, context: transformer.Context, losses: dict[str, mtf.Tensor]
  ) -> None:
    """Scales each loss by its coefficient, once, and adds it to the model's.

    Microbatches add up their losses, so each contributes its share of a mean.
    """
    if context.losses is None:
      return
    coefs = {"load_balancing_loss": self.load_balancing_coef,
             "router_z_loss": self.router_z_coef}
    coefs = {name: coef for name, coef in coefs.items()
             if coef and name in losses}
    summaries.record_loss_weights(coefs)
    share = 1.0 / (context.num_microbatches or 1)
    terms = [losses[name] * (coef * share) for name, coef in coefs.items()]
    if terms:
      context.losses.append(
          mtf.cast(mtf.add_n(terms), context.activation_dtype))


def _gin_scope() -> str:
  """The scope in which gin configures the stack that is being built."""
  scope, found, _ = tf.get_variable_scope().name.partition("/block_")
  return scope if found else ""


def _few_choices(context: transformer.Context, dims: MoeDims) -> bool:
  """Whether to read the chosen experts only: decoding, in one place."""
  processors = mtf.convert_to_shape(context.model.mesh_shape or "").size
  return (
      context.mode == "incremental" and processors == 1
      and not on_tpu(context.mesh)
      and mtf.Shape(dims.OGSK).size <= FEW_CHOICES)


def _nonpadding(
    context: transformer.Context, x: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """1 for a real token, 0 for padding; float32 OGS."""
  token_dims = x.shape.dims[:-1]
  nonpadding = context.nonpadding
  if context.mode == "first_part" and context.initial_position is not None:
    # Decoding goes on from a prompt. What is to be written is not there yet.
    nonpadding = mtf.less(context.position, context.initial_position)
  if not isinstance(nonpadding, mtf.Tensor):  # None, or 1: no padding
    return mtf.ones(x.mesh, mtf.Shape(dims.OGS))
  nonpadding = mtf.broadcast(
      mtf.cast(nonpadding, tf.float32), mtf.Shape(token_dims))
  return mtf.reshape(nonpadding, dims.OGS)


def _check_options(options: dict) -> None:
  """Raises ValueError unless every option is what it can be."""
  def some(*names: str) -> dict:
    return {name: options[name] for name in names}

  def some_or_none(*names: str) -> dict:
    return {name: options[name] for name in names if options[name] is not None}

  who = "SwitchFFN"
  errors.require_whole(who, **some("num_experts", "group_size", "min_capacity"))
  errors.require_whole(who, **some_or_none("hidden_size"))
  errors.require_number(who, above=0, **some_or_none(
      "capacity_factor_train", "capacity_factor_eval"))
  errors.require_number(who, at_least=0, below=1, **some("dropout_rate"))
  errors.require_number(
      who, at_least=0, **some("load_balancing_coef", "router_z_coef"))
  for activation in options["activation"] or [None]:
    errors.require_one_of(who, ACTIVATIONS, activation=activation)
  errors.require_instance(who, Router, "@SwitchRouter()", **some("router"))
  errors.require_instance(
      who, Dispatcher, "@GatherDispatcher()", **some_or_none("dispatcher"))
