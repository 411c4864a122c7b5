"""Routers that the paper compares its own with, and expert choice routing."""

import abc

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.layers import stateless
from switch_mtf.layers.exploration import Exploration, SampleSoftmax
from switch_mtf.layers.losses import load_balancing_loss
from switch_mtf.layers.routing import (
  Router,
  choice,
  choice_mask,
  choice_probs,
  top_experts,
)
from switch_mtf.layers.slots import fill_slots, rank_tokens


class SecondPolicy(abc.ABC):
  """A rule for which tokens ask for a slot of their second expert."""

  @abc.abstractmethod
  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """Returns 1 where a token asks for its second expert, else 0.

    Args:
      gate_OGS: float32 - weight of the token's second choice.

    Returns:
      float32 OGS.
    """


@gin.configurable
class AlwaysSecond(SecondPolicy):
  """A policy in which every token asks for its second expert."""

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.ones_like(gate_OGS)


@gin.configurable
class NeverSecond(SecondPolicy):
  """A policy in which no token asks for its second expert."""

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.zeros_like(gate_OGS)


@gin.configurable
class SecondAboveThreshold(SecondPolicy):
  """A policy in which tokens ask if their second gate is above a threshold."""

  def __init__(self, threshold: float = 0.2):
    """Records the threshold.

    Args:
      threshold: the gate above which a token asks, in [0, 1).

    Raises:
      ValueError: if `threshold` is out of range.
    """
    errors.require_number(
        "SecondAboveThreshold", at_least=0, below=1, threshold=threshold)
    self.threshold = threshold

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.cast(mtf.greater(gate_OGS, self.threshold), tf.float32)


@gin.configurable
class RandomSecond(SecondPolicy):
  """A policy in which tokens ask with probability second gate / threshold."""

  def __init__(self, threshold: float = 0.2):
    """Records the threshold.

    Args:
      threshold: the gate from which a token always asks, in (0, 1].

    Raises:
      ValueError: if `threshold` is out of range.
    """
    errors.require_number(
        "RandomSecond", above=0, at_most=1, threshold=threshold)
    self.threshold = threshold

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    drawn_OGS = stateless.uniform(
        gate_OGS.mesh, gate_OGS.shape.dims, "second_expert")
    return mtf.cast(
        mtf.less(drawn_OGS, gate_OGS / self.threshold), tf.float32)


@gin.configurable
class Top2Router(Router):
  """A router that sends tokens to their two best experts: the MoE of Table 1.

  The weights are the two probabilities, divided by their sum, whether or not
  both choices get a slot. All first choices are served before any second
  choice, so whether a second choice is kept also depends on later tokens of
  the group.

  Lepikhin et al., GShard, https://arxiv.org/abs/2006.16668, section 2.2.
  """

  def __init__(
      self,
      exploration: Exploration | None = None,
      prioritized: bool = False,
      second_train: SecondPolicy | None = None,
      second_eval: SecondPolicy | None = None,
      second_place_weight: float = 0.0,
      float32: bool = True,
  ):
    """Records the hyperparameters.

    Args:
      exploration: see the base class.
      prioritized: whether an expert takes the tokens with the most probable
        first choices instead of the first tokens.
      second_train: the policy for second choices in training; RandomSecond()
        by default.
      second_eval: the policy outside training; AlwaysSecond() by default.
        RandomSecond() draws the same numbers at each step of decoding.
      second_place_weight: weight of the second choices' balance in the
        load-balancing loss. 0.5 is mesh_tensorflow's `use_second_place_loss`.
      float32: see the base class.

    Raises:
      ValueError: if an argument has the wrong type, or if
        `second_place_weight` is negative.
    """
    super().__init__(exploration, float32)
    errors.require_number(
        "Top2Router", at_least=0, second_place_weight=second_place_weight)
    errors.require_flag("Top2Router", prioritized=prioritized)
    self.prioritized = prioritized
    self.second_train = (
        RandomSecond() if second_train is None else second_train)
    self.second_eval = AlwaysSecond() if second_eval is None else second_eval
    errors.require_instance(
        "Top2Router", SecondPolicy, "@RandomSecond()",
        second_train=self.second_train, second_eval=self.second_eval)
    self.second_place_weight = second_place_weight

  def num_choices(self, num_experts: int) -> int:
    """Returns 2, or 1 if there is a single expert."""
    return min(2, num_experts)

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class."""
    expert_OGSK = top_experts(preference_OGSE, dims)
    prob_OGSK = choice_probs(probs_OGSE, expert_OGSK, dims)
    # 1e-9 because two sampled experts may both have probability 0.
    weight_OGSK = prob_OGSK / (1e-9 + mtf.reduce_sum(
        prob_OGSK, reduced_dim=dims.choices_dim))

    asks = [nonpadding_OGS]
    if dims.choices_dim.size == 2:
      second = self.second_train if train else self.second_eval
      gate_OGS = mtf.to_float(choice(weight_OGSK, 1, dims))
      asks.append(nonpadding_OGS * second(gate_OGS))
    asks_OGSK = mtf.transpose(
        mtf.stack(asks, dims.choices_dim.name), mtf.Shape(dims.OGSK))
    slot_OGSK = fill_slots(
        expert_OGSK, asks_OGSK, dims,
        priority_OGS=choice(prob_OGSK, 0, dims) if self.prioritized else None)
    return expert_OGSK, slot_OGSK, weight_OGSK

  def balancing_losses(self, probs_OGSE, expert_OGSK, nonpadding_OGS, dims):
    """See the base class."""
    losses = super().balancing_losses(
        probs_OGSE, expert_OGSK, nonpadding_OGS, dims)
    if self.second_place_weight and dims.choices_dim.size == 2:
      rest_OGSE = probs_OGSE * (1.0 - choice_mask(expert_OGSK, 0, dims))
      # 1e-18 because a first choice of probability 1 leaves a sum of 0.
      rest_OGSE /= 1e-18 + mtf.reduce_sum(
          rest_OGSE, reduced_dim=dims.experts_unsplit_dim)
      losses["load_balancing_loss"] += (
          self.second_place_weight * load_balancing_loss(
              rest_OGSE, choice_mask(expert_OGSK, 1, dims), nonpadding_OGS,
              dims))
    return losses


@gin.configurable
class NoTokenLeftBehindRouter(Router):
  """A router that sends a token to its next best expert if the first is full.

  Switch Transformer, https://arxiv.org/abs/2101.03961, appendix B, which found
  no gain from this router.
  """

  def __init__(
      self, exploration: Exploration | None = None, rounds: int = 2,
      float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: see the base class.
      rounds: number of experts that a token asks in turn; if all of them are
        full, the token is dropped. With 1 this is `SwitchRouter`.
      float32: see the base class.

    Raises:
      ValueError: if an argument has the wrong type, or if `rounds` is not
        positive.
    """
    super().__init__(exploration, float32)
    errors.require_whole("NoTokenLeftBehindRouter", rounds=rounds)
    self.rounds = rounds

  def num_choices(self, num_experts: int) -> int:
    """Returns the number of rounds; a token keeps at most one choice."""
    return min(self.rounds, num_experts)

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class."""
    expert_OGSK = top_experts(preference_OGSE, dims)
    asks_OGSK = mtf.broadcast(nonpadding_OGS, mtf.Shape(dims.OGSK))
    slot_OGSK = fill_slots(expert_OGSK, asks_OGSK, dims, once=True)
    return expert_OGSK, slot_OGSK, choice_probs(probs_OGSE, expert_OGSK, dims)


@gin.configurable
class ExpertChoiceRouter(Router):
  """A router in which each expert takes the tokens most probable for it.

  The experts are balanced by construction, so there is no load-balancing loss.
  Any number of experts may take a token, or none. Whether an expert takes a
  token depends on later tokens, so this router is for encoders only.

  With `GatherDispatcher`, memory grows with tokens times experts times d_model.

  Zhou et al., https://arxiv.org/abs/2202.09368.
  """

  def __init__(
      self, exploration: Exploration | None = None,
      softmax_over_tokens: bool = False, float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: see the base class; SampleSoftmax() is not allowed.
      softmax_over_tokens: whether the probabilities of an expert sum to 1 over
        the real tokens of a group, and a token's weights are divided by the
        number of experts that took the token, as in mesh_tensorflow's
        "expert_selection".
      float32: see the base class.

    Raises:
      ValueError: if an argument has the wrong type, or if `exploration` is
        SampleSoftmax().
    """
    super().__init__(exploration, float32)
    if isinstance(exploration, SampleSoftmax):
      raise ValueError(
          "ExpertChoiceRouter: exploration must not draw experts, as here "
          "experts choose tokens, with "
          f"exploration={type(exploration).__name__}. Set "
          "ExpertChoiceRouter.exploration to @InputJitter().")
    errors.require_flag(
        "ExpertChoiceRouter", softmax_over_tokens=softmax_over_tokens)
    self.softmax_over_tokens = softmax_over_tokens

  def __call__(self, x_OGSM, nonpadding_OGS, dims, context):
    """See the base class.

    Raises:
      ValueError: if the layer is in a decoder.
    """
    if context.model.autoregressive:
      raise ValueError(
          "ExpertChoiceRouter: the stack must not be autoregressive, as an "
          "expert that ranks all tokens of a group sees the future, with "
          f"autoregressive={context.model.autoregressive}. Set "
          "decoder/SwitchFFN.router to another router, such as "
          "@SwitchRouter().")
    return super().__call__(x_OGSM, nonpadding_OGS, dims, context)

  def num_choices(self, num_experts: int) -> int:
    """Returns the number of experts: choice k is expert k."""
    return num_experts

  def probabilities(self, logits_OGSE, nonpadding_OGS, dims):
    """Returns the softmax over tokens or experts; see `softmax_over_tokens`."""
    if not self.softmax_over_tokens:
      return super().probabilities(logits_OGSE, nonpadding_OGS, dims)
    real_OGS = mtf.cast(nonpadding_OGS, logits_OGSE.dtype)
    # Padding weighs nothing, whatever its logits are.
    return mtf.softmax(
        logits_OGSE * real_OGS - 1e9 * (1.0 - real_OGS),
        reduced_dim=dims.group_size_dim)

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class."""
    # A softmax over tokens keeps each expert's order of the logits.
    score_OGSE = preference_OGSE if self.softmax_over_tokens else probs_OGSE
    slot_OGSK = rank_tokens(mtf.to_float(score_OGSE), nonpadding_OGS, dims)
    expert_OGSK = mtf.broadcast(
        mtf.range(probs_OGSE.mesh, dims.choices_dim, tf.int32),
        mtf.Shape(dims.OGSK))
    weight_OGSK = mtf.reshape(probs_OGSE, dims.OGSK)
    if self.softmax_over_tokens:
      taken_OGSK = mtf.cast(
          mtf.less(slot_OGSK, dims.capacity_dim.size), weight_OGSK.dtype)
      weight_OGSK /= mtf.maximum(
          mtf.reduce_sum(taken_OGSK, reduced_dim=dims.choices_dim), 1.0)
    return expert_OGSK, slot_OGSK, weight_OGSK

  def balancing_losses(self, probs_OGSE, expert_OGSK, nonpadding_OGS, dims):
    """Returns no loss: the experts are balanced by construction."""
    return {}

  def tokens_by_expert(self, expert_OGSK, kept_OGSK, dims):
    """See the base class; an expert's tokens are those that it took."""
    taken_OGSE = mtf.reshape(kept_OGSK, dims.OGSE)
    return taken_OGSE, taken_OGSE
