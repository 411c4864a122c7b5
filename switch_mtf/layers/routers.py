"""The routers that the paper compares its own with, and a later one."""

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
  """Which tokens ask for a slot of their second expert."""

  @abc.abstractmethod
  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """1 where a token whose second gate is `gate` asks; both float32 OGS."""


@gin.configurable
class AlwaysSecond(SecondPolicy):
  """Every token asks for its second expert."""

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.ones_like(gate_OGS)


@gin.configurable
class NeverSecond(SecondPolicy):
  """No token asks for its second expert."""

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.zeros_like(gate_OGS)


@gin.configurable
class SecondAboveThreshold(SecondPolicy):
  """A token asks for its second expert if that gate is above a threshold."""

  def __init__(self, threshold: float = 0.2):
    """Records the threshold, in [0, 1).

    Raises:
      ValueError: if it is out of range.
    """
    errors.require_number(
        "SecondAboveThreshold", at_least=0, below=1, threshold=threshold)
    self.threshold = threshold

  def __call__(self, gate_OGS: mtf.Tensor) -> mtf.Tensor:
    """See the base class."""
    return mtf.cast(mtf.greater(gate_OGS, self.threshold), tf.float32)


@gin.configurable
class RandomSecond(SecondPolicy):
  """A token asks for its second expert with probability gate / threshold."""

  def __init__(self, threshold: float = 0.2):
    """Records the threshold, in (0, 1]; from there on a token always asks.

    Raises:
      ValueError: if it is out of range.
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
  """Sends each token to its two most probable experts: the MoE of Table 1.

  The weights are the two probabilities, divided by their sum, whether or not
  both find a slot. First choices are served before all second ones, so that
  whether a second one is kept depends on later tokens of the group, too.

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
      exploration: see the base class, like `float32`.
      prioritized: an expert takes the tokens that are surest of their first
        choice instead of the first ones.
      second_train: which tokens ask for their second expert in training;
        RandomSecond() by default.
      second_eval: the same otherwise; AlwaysSecond() by default. RandomSecond()
        draws the same numbers at each step of decoding.
      second_place_weight: of the balance of second choices, in the
        load-balancing loss. mesh_tensorflow's `use_second_place_loss` is 0.5.
      float32: see the base class.

    Raises:
      ValueError: if an argument is of another kind, or the weight negative.
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
    """Two, where there are two."""
    return min(2, num_experts)

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class."""
    expert_OGSK = top_experts(preference_OGSE, dims)
    prob_OGSK = choice_probs(probs_OGSE, expert_OGSK, dims)
    # Experts that are drawn may both have a probability of 0.
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
      # A sure first choice may leave 0.
      rest_OGSE /= 1e-18 + mtf.reduce_sum(
          rest_OGSE, reduced_dim=dims.experts_unsplit_dim)
      losses["load_balancing_loss"] += (
          self.second_place_weight * load_balancing_loss(
              rest_OGSE, choice_mask(expert_OGSK, 1, dims), nonpadding_OGS,
              dims))
    return losses


@gin.configurable
class NoTokenLeftBehindRouter(Router):
  """Sends a token that finds its expert full to its next best one.

  Switch Transformer, https://arxiv.org/abs/2101.03961, appendix B, where it
  brought no gain.
  """

  def __init__(
      self, exploration: Exploration | None = None, rounds: int = 2,
      float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: see the base class, like `float32`.
      rounds: experts that a token asks, one after the other; a token that finds
        all of them full is dropped. With 1 this is `SwitchRouter`.
      float32: see the base class.

    Raises:
      ValueError: if an argument is of another kind, or `rounds` not positive.
    """
    super().__init__(exploration, float32)
    errors.require_whole("NoTokenLeftBehindRouter", rounds=rounds)
    self.rounds = rounds

  def num_choices(self, num_experts: int) -> int:
    """One a round, of which at most one is kept."""
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
  """Lets each expert take the tokens that are most probable for it.

  The experts are balanced by construction, so there is no load-balancing loss.
  A token may be taken by any number of experts, and by none. Whether it is
  depends on the tokens after it, hence for encoders only.

  Zhou et al., https://arxiv.org/abs/2202.09368. With `GatherDispatcher` memory
  grows with tokens times experts times d_model.
  """

  def __init__(
      self, exploration: Exploration | None = None,
      softmax_over_tokens: bool = False, float32: bool = True):
    """Records the hyperparameters.

    Args:
      exploration: see the base class, like `float32`; not SampleSoftmax().
      softmax_over_tokens: the probabilities of an expert sum to 1 over the real
        tokens of a group, and a token's weights are divided by the number of
        experts that took it, as mesh_tensorflow's "expert_selection" does it.
      float32: see the base class.

    Raises:
      ValueError: if an argument is of another kind, or the exploration is to
        draw experts.
    """
    super().__init__(exploration, float32)
    if isinstance(exploration, SampleSoftmax):
      raise ValueError(
          "ExpertChoiceRouter: exploration must leave the choice to the "
          f"experts, with exploration={type(exploration).__name__}. Set "
          "ExpertChoiceRouter.exploration to @InputJitter().")
    errors.require_flag(
        "ExpertChoiceRouter", softmax_over_tokens=softmax_over_tokens)
    self.softmax_over_tokens = softmax_over_tokens

  def __call__(self, x_OGSM, nonpadding_OGS, dims, context):
    """See the base class.

    Raises:
      ValueError: in a decoder.
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
    """All: choice k is expert k."""
    return num_experts

  def probabilities(self, logits_OGSE, nonpadding_OGS, dims):
    """See the class."""
    if not self.softmax_over_tokens:
      return super().probabilities(logits_OGSE, nonpadding_OGS, dims)
    real_OGS = mtf.cast(nonpadding_OGS, logits_OGSE.dtype)
    # Whatever stands in padding, it weighs nothing.
    return mtf.softmax(
        logits_OGSE * real_OGS - 1e9 * (1.0 - real_OGS),
        reduced_dim=dims.group_size_dim)

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class."""
    # Over tokens the softmax leaves their order as it is.
    liking_OGSE = preference_OGSE if self.softmax_over_tokens else probs_OGSE
    slot_OGSK = rank_tokens(mtf.to_float(liking_OGSE), nonpadding_OGS, dims)
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
    """None is needed."""
    return {}

  def tokens_by_expert(self, expert_OGSK, kept_OGSK, dims):
    """See the base class: the tokens that an expert took."""
    taken_OGSE = mtf.reshape(kept_OGSK, dims.OGSE)
    return taken_OGSE, taken_OGSE
