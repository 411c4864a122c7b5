"""Chooses an expert and a slot for each token.

A `Router` sees grouped tokens and returns a `Routing`. It knows nothing of the
mesh, of the experts' networks or of how `dispatch.py` moves rows. The paper's
router is here, others are in `routers.py`.
"""

import abc
import dataclasses

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.dims import MoeDims, check_shape
from switch_mtf.layers.exploration import Exploration, InputJitter
from switch_mtf.layers.initialization import kernel_initializer
from switch_mtf.layers.losses import load_balancing_loss, router_z_loss
from switch_mtf.layers.slots import fill_slots


@dataclasses.dataclass(frozen=True)
class Routing:
  """The choices of the tokens of a batch, as indices, with losses and metrics.

  Attributes:
    expert_OGSK: int32 - the expert of the token's k-th choice.
    slot_OGSK: int32 - its slot there; `capacity` where the choice was dropped.
    weight_OGSK: float32 - factor of the expert's output, 0 where dropped.
    losses: name to float32 scalar, each a mean over real tokens, unscaled.
    metrics: name to float32 scalar or [experts_unsplit], for people to read.
  """

  expert_OGSK: mtf.Tensor
  slot_OGSK: mtf.Tensor
  weight_OGSK: mtf.Tensor
  losses: dict[str, mtf.Tensor]
  metrics: dict[str, mtf.Tensor]


class Router(abc.ABC):
  """A router by the probabilities of a linear layer; subclasses give `assign`.

  Everything is computed in float32, whatever the dtype of the activations: in
  bfloat16 training diverges (section 2.4, Table 2).

  Switch Transformer, https://arxiv.org/abs/2101.03961, section 2.
  """

  def __init__(
      self, exploration: Exploration | None = None, float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: noise of training; InputJitter() by default.
      float32: whether to compute in float32; False takes the dtype of the
        activations, to show what goes wrong then.

    Raises:
      ValueError: if an argument has the wrong type.
    """
    name = type(self).__name__
    errors.require_flag(name, float32=float32)
    self.exploration = InputJitter() if exploration is None else exploration
    errors.require_instance(
        name, Exploration, "@InputJitter()", exploration=self.exploration)
    self.float32 = float32

  def __call__(
      self, x_OGSM: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims,
      context,
  ) -> Routing:
    """Decides which slot of which expert each token takes.

    Args:
      x_OGSM: [outer_batch, batch, group, d_model] - the tokens.
      nonpadding_OGS: float32 [outer_batch, batch, group] - 1 for a real token,
        0 for padding. Padding takes no slot and counts in no loss or metric.
      dims: sizes of the layer's dimensions.
      context: transformer.Context of the call; training turns the noise on.

    Returns:
      Expert, slot and weight of each choice, losses and metrics.

    Raises:
      ValueError: if an argument's dimensions are not those above, in order.
    """
    check_shape(x_OGSM, dims.OGSM, f"{type(self).__name__} x")
    check_shape(
        nonpadding_OGS, dims.OGS, f"{type(self).__name__} nonpadding")
    logits_OGSE = self._logits(x_OGSM, dims, context)
    return self.route(logits_OGSE, nonpadding_OGS, dims, context.train)

  def route(
      self, logits_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims,
      train: bool,
  ) -> Routing:
    """Routes tokens by given logits: `__call__` after its linear layer.

    Args:
      logits_OGSE: [outer_batch, batch, group, experts_unsplit] - h(x).
      nonpadding_OGS: as in `__call__`.
      dims: sizes of the layer's dimensions.
      train: whether the noise is on.

    Returns:
      Expert, slot and weight of each choice, losses and metrics.

    Raises:
      ValueError: as `__call__`.
    """
    probs_OGSE = self.probabilities(logits_OGSE, nonpadding_OGS, dims)
    # Experts are ranked by logits, not by probabilities: those of equal logits
    # may differ in the last bit, and those of small logits are all 0.
    preference_OGSE = logits_OGSE
    if train:
      preference_OGSE = self.exploration.preference(logits_OGSE, dims)
    expert_OGSK, slot_OGSK, weight_OGSK = self.assign(
        probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train)
    kept_OGSK = mtf.cast(
        mtf.less(slot_OGSK, dims.capacity_dim.size), tf.float32)
    logits_OGSE, probs_OGSE = map(mtf.to_float, (logits_OGSE, probs_OGSE))
    wanted_OGSE, taken_OGSE = self.tokens_by_expert(
        expert_OGSK, kept_OGSK, dims)
    return Routing(
        expert_OGSK=expert_OGSK,
        slot_OGSK=slot_OGSK,
        weight_OGSK=mtf.to_float(weight_OGSK) * kept_OGSK,
        losses={
            **self.balancing_losses(
                probs_OGSE, expert_OGSK, nonpadding_OGS, dims),
            "router_z_loss": router_z_loss(logits_OGSE, nonpadding_OGS, dims)},
        metrics=routing_metrics(
            logits_OGSE, probs_OGSE, wanted_OGSE, taken_OGSE, kept_OGSK,
            nonpadding_OGS, dims))

  @abc.abstractmethod
  def assign(
      self, probs_OGSE: mtf.Tensor, preference_OGSE: mtf.Tensor,
      nonpadding_OGS: mtf.Tensor, dims: MoeDims, train: bool,
  ) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """Chooses experts and slots: the step in which routers differ.

    Args:
      probs_OGSE: [outer_batch, batch, group, experts_unsplit] - the router's
        probabilities.
      preference_OGSE: same shape - the numbers by which a token ranks the
        experts: the logits, or what the exploration makes of them.
      nonpadding_OGS: as in `__call__`.
      dims: sizes of the layer's dimensions.
      train: whether the model is being trained.

    Returns:
      expert_OGSK and slot_OGSK of the `Routing`, and the weights that the
        choices have if they are kept, OGSK.
    """

  def num_choices(self, num_experts: int) -> int:
    """Returns K, the number of experts that a token may use."""
    return 1

  def probabilities(
      self, logits_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
  ) -> mtf.Tensor:
    """Returns the softmax over the experts (equation 1); OGSE."""
    return mtf.softmax(logits_OGSE, reduced_dim=dims.experts_unsplit_dim)

  def balancing_losses(
      self, probs_OGSE: mtf.Tensor, expert_OGSK: mtf.Tensor,
      nonpadding_OGS: mtf.Tensor, dims: MoeDims,
  ) -> dict[str, mtf.Tensor]:
    """Returns the losses that balance the experts' load, by first choices."""
    return {"load_balancing_loss": load_balancing_loss(
        probs_OGSE, choice_mask(expert_OGSK, 0, dims), nonpadding_OGS, dims)}

  def tokens_by_expert(
      self, expert_OGSK: mtf.Tensor, kept_OGSK: mtf.Tensor, dims: MoeDims
  ) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Returns which tokens count towards each expert's load: first choices.

    Returns:
      Two float32 OGSE - 1 where the token chose the expert, and 1 where the
        expert had a slot for the token.
    """
    wanted_OGSE = choice_mask(expert_OGSK, 0, dims)
    return wanted_OGSE, wanted_OGSE * choice(kept_OGSK, 0, dims)

  def _logits(
      self, x_OGSM: mtf.Tensor, dims: MoeDims, context
  ) -> mtf.Tensor:
    """Returns h(x) = W_r x, with the noise on x; OGSE."""
    dtype = tf.float32 if self.float32 else x_OGSM.dtype
    x_OGSM = mtf.cast(x_OGSM, dtype)
    if context.train:
      x_OGSM = self.exploration.perturb(x_OGSM, dims)
    stored = context.variable_dtype
    return mtf.layers.dense(
        x_OGSM, [dims.experts_unsplit_dim], reduced_dims=[dims.model_dim],
        use_bias=False, kernel_initializer=kernel_initializer(), name="router",
        variable_dtype=mtf.VariableDType(
            stored.master_dtype, stored.slice_dtype, dtype))


@gin.configurable
class SwitchRouter(Router):
  """A router that sends each token to its most probable expert.

  An expert takes the first `capacity` tokens of a group that choose it. Later
  tokens are dropped: the layer adds nothing to them, and the residual
  connection carries them on. A tie goes to the expert of lower index.

  Switch Transformer, https://arxiv.org/abs/2101.03961, sections 2.1 and 2.2.
  """

  def __init__(
      self, exploration: Exploration | None = None, prioritized: bool = False,
      float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: see the base class.
      prioritized: whether an expert takes the most probable tokens instead of
        the first (batch-prioritised routing, Riquelme et al., arXiv
        2106.05974).
      float32: see the base class.

    Raises:
      ValueError: if an argument has the wrong type.
    """
    super().__init__(exploration, float32)
    errors.require_flag("SwitchRouter", prioritized=prioritized)
    self.prioritized = prioritized

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class; the weight is the router probability (equation 2)."""
    expert_OGSK = top_experts(preference_OGSE, dims)
    prob_OGSK = choice_probs(probs_OGSE, expert_OGSK, dims)
    slot_OGSK = fill_slots(
        expert_OGSK, mtf.reshape(nonpadding_OGS, dims.OGSK), dims,
        priority_OGS=choice(prob_OGSK, 0, dims) if self.prioritized else None)
    return expert_OGSK, slot_OGSK, prob_OGSK


def top_experts(preference_OGSE: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Returns the experts that each token ranks highest, in order; int32 OGSK."""
  _, expert_OGSK = mtf.top_k(
      preference_OGSE, dims.experts_unsplit_dim, dims.choices_dim)
  return expert_OGSK


def choice_mask(
    expert_OGSK: mtf.Tensor, k: int, dims: MoeDims
) -> mtf.Tensor:
  """Returns 1 at the expert of a token's k-th choice, else 0; float32 OGSE."""
  return mtf.one_hot(
      choice(expert_OGSK, k, dims), dims.experts_unsplit_dim, dtype=tf.float32)


def choice(y_OGSK: mtf.Tensor, k: int, dims: MoeDims) -> mtf.Tensor:
  """Returns the values of the k-th choices; OGS."""
  if dims.choices_dim.size > 1:
    y_OGSK = mtf.slice(y_OGSK, k, 1, dims.choices_dim.name)
  return mtf.reshape(y_OGSK, dims.OGS)


def choice_probs(
    probs_OGSE: mtf.Tensor, expert_OGSK: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Returns the probability of the expert of each choice; OGSK.

  `mtf.gather` would make a small matmul for each token.
  """
  mask = mtf.one_hot(
      expert_OGSK, dims.experts_unsplit_dim, dtype=probs_OGSE.dtype)
  return mtf.reduce_sum(
      probs_OGSE * mask, output_shape=mtf.Shape(dims.OGSK))


def routing_metrics(
    logits_OGSE: mtf.Tensor, probs_OGSE: mtf.Tensor, wanted_OGSE: mtf.Tensor,
    taken_OGSE: mtf.Tensor, kept_OGSK: mtf.Tensor, nonpadding_OGS: mtf.Tensor,
    dims: MoeDims,
) -> dict[str, mtf.Tensor]:
  """Summarises a routing over all real tokens.

  Args:
    logits_OGSE: float32 - before the softmax.
    probs_OGSE: float32 - router probabilities.
    wanted_OGSE: float32 - 1 where a token chose the expert, see
      `Router.tokens_by_expert`.
    taken_OGSE: float32 - 1 where the expert had a slot for the token.
    kept_OGSK: float32 - 1 where a choice got a slot.
    nonpadding_OGS: float32 - 1 for a real token.
    dims: sizes of the layer's dimensions.

  Returns:
    `expert_load`: [experts_unsplit] - share of the tokens that choose each
      expert; sums to 1.
    `expert_dropped_fraction`: [experts_unsplit] - share of an expert's tokens
      that it had no slot for.
    `expert_probability`: [experts_unsplit] - mean router probability of an
      expert's tokens.
    `dead_experts`: [] - number of experts that no token chooses.
    `dropped_fraction`: [] - share of the tokens that no expert had a slot for.
    `router_entropy`: [] - mean entropy of the router's distribution, in nats.
    `router_probability`: [] - mean probability of the expert chosen.
    `router_logit_norm`: [] - mean length of the vector of logits.
    `capacity_factor`: [] - slots over tokens, after rounding and the minimum.
  """
  real = mtf.reduce_sum(nonpadding_OGS)
  tokens = mtf.maximum(real, 1.0)

  def mean(y_OGS: mtf.Tensor) -> mtf.Tensor:
    return mtf.reduce_sum(y_OGS * nonpadding_OGS) / tokens

  entropy_OGS = -mtf.reduce_sum(
      probs_OGSE * mtf.log(probs_OGSE + 1e-9),
      reduced_dim=dims.experts_unsplit_dim)
  norm_OGS = mtf.sqrt(mtf.reduce_sum(
      mtf.square(logits_OGSE), reduced_dim=dims.experts_unsplit_dim))
  kept_OGS = mtf.reduce_max(kept_OGSK, reduced_dim=dims.choices_dim)
  slots = dims.capacity_dim.size * dims.experts_dim.size
  return {
      **_expert_metrics(
          probs_OGSE, wanted_OGSE * nonpadding_OGS,
          taken_OGSE * nonpadding_OGS, dims),
      "dropped_fraction": (
          real - mtf.reduce_sum(kept_OGS * nonpadding_OGS)) / tokens,
      "router_entropy": mean(entropy_OGS),
      "router_logit_norm": mean(norm_OGS),
      "capacity_factor": mtf.constant(
          probs_OGSE.mesh, slots / dims.group_size_dim.size, dtype=tf.float32),
  }


def _expert_metrics(
    probs_OGSE: mtf.Tensor, wanted_OGSE: mtf.Tensor, taken_OGSE: mtf.Tensor,
    dims: MoeDims,
) -> dict[str, mtf.Tensor]:
  """Returns the metrics of `routing_metrics` that count tokens by expert."""
  def per_expert(y_OGSE: mtf.Tensor) -> mtf.Tensor:
    return mtf.reduce_sum(y_OGSE, output_shape=[dims.experts_unsplit_dim])

  count_E, prob_E = per_expert(wanted_OGSE), per_expert(
      probs_OGSE * wanted_OGSE)
  total = mtf.maximum(mtf.reduce_sum(count_E), 1.0)
  some_E = mtf.maximum(count_E, 1.0)
  return {
      "expert_load": count_E / total,
      "expert_dropped_fraction": (count_E - per_expert(taken_OGSE)) / some_E,
      "expert_probability": prob_E / some_E,
      "dead_experts": mtf.reduce_sum(
          mtf.cast(mtf.equal(count_E, 0.0), tf.float32)),
      "router_probability": mtf.reduce_sum(prob_E) / total,
  }
