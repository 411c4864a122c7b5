"""The Switch feed-forward layer: joins router, dispatcher and experts.

Put it where a T5 layer list has `DenseReluDense`. `routing.py` chooses experts
and slots, `dispatch.py` moves the rows, `experts.py` computes, and `losses.py`
keeps the load balanced.
"""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf import errors
from switch_mtf.dims import MoeDims
from switch_mtf.layers import summaries
from switch_mtf.layers.dispatch import (
  Dispatcher,
  default_dispatcher,
  drops_nothing,
)
from switch_mtf.layers.experts import ACTIVATIONS, apply_experts
from switch_mtf.layers.routing import Router, Routing, SwitchRouter


@gin.configurable
class SwitchFFN(transformer.TransformerLayer):
  """A feed-forward layer of which each token uses one expert.

  A call takes these steps:

  1. group: the tokens form groups, within which they compete for slots.
  2. route: the router chooses an expert, and a slot there, for each token.
  3. to experts: tokens move to their slots (all-to-all number one).
  4. experts: each expert applies its network to its slots.
  5. from experts: results return to their tokens, weighted by the router's
     probability (all-to-all number two).
  6. losses: the load-balancing loss and the router z-loss are added to the
     model's losses.
  7. ungroup: the results get the shape of the input.

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
      num_experts: number of experts.
      hidden_size: hidden units of one expert; None makes an expert one linear
        map.
      activation: name of a function, or a list of names whose results are
        multiplied; see `apply_experts`.
      group_size: tokens that compete for slots; must divide the tokens of each
        processor exactly. A call with fewer tokens is one group.
      capacity_factor_train: slots of all experts over tokens, in training;
        None drops nothing, at the cost of a slot for every token and expert.
      capacity_factor_eval: slots over tokens in evaluation and scoring, unless
        `drop_nothing` is set. Decoding drops nothing.
      min_capacity: smallest number of slots of an expert for one group.
      dropout_rate: expert dropout, on the hidden units.
      load_balancing_coef: alpha of equation 4. The losses of layers are summed.
      router_z_coef: weight of the router z-loss; ST-MoE has 1e-3.
      router: a `Router`; SwitchRouter() by default.
      dispatcher: a `Dispatcher`; by default einsum on TPU, gather elsewhere,
        and in place for the few tokens of a decoding step on one processor.

    Raises:
      ValueError: if an option has an illegal value.
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
      self, context: transformer.Context, x: mtf.Tensor, *,
      output_dim: mtf.Dimension | None = None,
  ) -> mtf.Tensor:
    """Applies the layer; the steps are those of the class docstring.

    Args:
      context: context of the stack; losses are appended to `context.losses`.
      x: [outer_batch?, batch, ..., d_model] - all dimensions but outer_batch
        and d_model index tokens.
      output_dim: features of the result; d_model by default.

    Returns:
      `x` with `output_dim` instead of d_model, same dtype; exactly 0 for
        padding and for tokens whose expert was full.

    Raises:
      ValueError: if tokens, groups or experts do not divide (see `MoeDims`).
    """
    output_dim = output_dim or x.shape.dims[-1]
    dims = self._dims(context, x.shape, output_dim)
    dispatcher = self.dispatcher or default_dispatcher(context, dims)

    x_OGSM, nonpadding_OGS = _group(context, x, dims)
    routing = self.router(x_OGSM, nonpadding_OGS, dims, context)
    h_EXM = dispatcher.to_experts(x_OGSM, routing, dims)
    h_EXN = self._experts(context, h_EXM, routing, dims)
    y_OGSN = dispatcher.from_experts(h_EXN, routing, dims)
    self._add_losses(context, routing)
    return _ungroup(y_OGSN, x.shape, output_dim)

  def _experts(
      self, context: transformer.Context, h_EXM: mtf.Tensor, routing: Routing,
      dims: MoeDims,
  ) -> mtf.Tensor:
    """Applies the experts to their slots."""
    return apply_experts(
        h_EXM, routing.expert_OGSK, dims,
        activation=self.activation if self.hidden_size else [],
        dropout_rate=self.dropout_rate if context.train else 0.0,
        variable_dtype=context.variable_dtype)

  def _dims(
      self, context: transformer.Context, x_shape: mtf.Shape,
      output_dim: mtf.Dimension,
  ) -> MoeDims:
    """Returns the sizes of this call."""
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
        output_size=output_dim.size,
        keep_all=context.mode == "incremental" or drops_nothing(context),
        layout=context.model.layout,
        mesh_shape=context.model.mesh_shape,
        scope=_gin_scope())

  def _add_losses(
      self, context: transformer.Context, routing: Routing) -> None:
    """Adds the losses to the model's, and records losses and metrics.

    Each loss is scaled by its coefficient once, here. T5 sums the losses of
    microbatches, so that each contributes its share of a mean.
    """
    summaries.record(context, {**routing.metrics, **routing.losses})
    if context.losses is None:
      return
    coefs = {"load_balancing_loss": self.load_balancing_coef,
             "router_z_loss": self.router_z_coef}
    coefs = {name: coef for name, coef in coefs.items()
             if coef and name in routing.losses}
    summaries.record_loss_weights(coefs)
    share = 1.0 / (context.num_microbatches or 1)
    terms = [routing.losses[name] * (coef * share)
             for name, coef in coefs.items()]
    if terms:
      context.losses.append(
          mtf.cast(mtf.add_n(terms), context.activation_dtype))


def _gin_scope() -> str:
  """Returns the scope in which gin configures the stack that is being built."""
  scope, found, _ = tf.get_variable_scope().name.partition("/block_")
  return scope if found else ""


def _group(
    context: transformer.Context, x: mtf.Tensor, dims: MoeDims
) -> tuple[mtf.Tensor, mtf.Tensor]:
  """Returns the tokens in groups, OGSM, and which are real.

  The second result is float32 OGS: 1 for a real token, 0 for padding.
  """
  token_dims = x.shape.dims[:-1]
  x_OGSM = mtf.reshape(x, dims.OGSM)
  nonpadding = context.nonpadding
  if context.mode == "first_part" and context.initial_position is not None:
    # Decoding continues a prompt: the positions after it are still empty.
    nonpadding = mtf.less(context.position, context.initial_position)
  if not isinstance(nonpadding, mtf.Tensor):  # None, or 1: no padding
    return x_OGSM, mtf.ones(x.mesh, mtf.Shape(dims.OGS))
  nonpadding = mtf.broadcast(
      mtf.cast(nonpadding, tf.float32), mtf.Shape(token_dims))
  return x_OGSM, mtf.reshape(nonpadding, dims.OGS)


def _ungroup(
    y_OGSN: mtf.Tensor, x_shape: mtf.Shape, output_dim: mtf.Dimension
) -> mtf.Tensor:
  """Returns the results in the order of the layer's input."""
  return mtf.reshape(y_OGSN, [*x_shape.dims[:-1], output_dim])


def _check_options(options: dict) -> None:
  """Raises ValueError unless every option has a legal value."""
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
