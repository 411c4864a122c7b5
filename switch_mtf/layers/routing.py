"""Who goes where: `Routing` is the answer, a `Router` finds it.

A router sees grouped tokens and knows nothing of the mesh, of the experts or of
how rows are moved. `dispatch.py` acts on the answer.
"""

import abc
import dataclasses

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.dims import MoeDims, check_shape
from switch_mtf.layers import stateless
from switch_mtf.layers.losses import load_balancing_loss


@dataclasses.dataclass(frozen=True)
class Routing:
  """The choices of the tokens of a batch, as indices.

  Attributes:
    expert_OGSK: int32 - the expert of the token's k-th choice.
    slot_OGSK: int32 - its slot there; `capacity` where the choice was dropped.
    weight_OGSK: float32 - factor of the expert's output, 0 where dropped.
    choice_OGEC: int32 - the inverse: s * K + k of the choice that holds the
      slot, `group_size * num_choices` where the slot is empty.
    losses: name to float32 scalar, each a mean over real tokens, unscaled.
    metrics: name to float32 scalar or [experts_unsplit], for people to read.
  """

  expert_OGSK: mtf.Tensor
  slot_OGSK: mtf.Tensor
  weight_OGSK: mtf.Tensor
  choice_OGEC: mtf.Tensor
  losses: dict[str, mtf.Tensor]
  metrics: dict[str, mtf.Tensor]


class Router(abc.ABC):
  """Routes tokens by the probabilities of a linear layer; `assign` varies.

  Everything is computed in float32, whatever the activations are: in bfloat16
  training diverges (section 2.4, Table 2).

  Switch Transformer, https://arxiv.org/abs/2101.03961, section 2.
  """

  def __init__(self, jitter: float = 1e-2):
    """Records the hyperparameters.

    Args:
      jitter: in training the router's input is multiplied by a number drawn
        from [1 - jitter, 1 + jitter]; the experts never see it. 0 turns it off.

    Raises:
      ValueError: if jitter is not in [0, 1).
    """
    if not 0 <= jitter < 1:
      raise ValueError(
          f"{type(self).__name__}: jitter must be in [0, 1), with "
          f"jitter={jitter}. Set {type(self).__name__}.jitter.")
    self.jitter = jitter

  def __call__(
      self, x_OGSM: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims,
      context,
  ) -> Routing:
    """Decides which slot of which expert each token takes.

    Args:
      x_OGSM: [outer_batch, batch, group, d_model] - the tokens.
      nonpadding_OGS: float32 [outer_batch, batch, group] - 1 for a real token,
        0 for padding. Padding takes no slot and counts in no loss or metric.
      dims: sizes.
      context: transformer.Context; its mode turns the noise on.

    Returns:
      The routing.

    Raises:
      ValueError: if an argument's dimensions are not those above, in order.
    """
    check_shape(x_OGSM, dims.OGSM, f"{type(self).__name__} x")
    check_shape(
        nonpadding_OGS, dims.OGS, f"{type(self).__name__} nonpadding")
    logits_OGSE = self._logits(x_OGSM, dims, context)
    probs_OGSE = mtf.softmax(logits_OGSE, reduced_dim=dims.experts_unsplit_dim)
    return self.assign(probs_OGSE, nonpadding_OGS, dims)

  @abc.abstractmethod
  def assign(
      self, probs_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
  ) -> Routing:
    """The step in which routers differ: probabilities in, routing out.

    Args:
      probs_OGSE: float32 [outer_batch, batch, group, experts_unsplit] - sums to
        1 over experts.
      nonpadding_OGS: as in `__call__`.
      dims: sizes.

    Returns:
      The routing.
    """

  def _logits(
      self, x_OGSM: mtf.Tensor, dims: MoeDims, context
  ) -> mtf.Tensor:
    """h(x) = W_r x, after the noise; float32 OGSE."""
    x_OGSM = mtf.to_float(x_OGSM)
    if context.train and self.jitter:
      noise_OGSM = stateless.uniform(x_OGSM.mesh, dims.OGSM, "jitter")
      x_OGSM *= 1.0 + self.jitter * (2.0 * noise_OGSM - 1.0)
    stored = context.variable_dtype
    return mtf.layers.dense(
        x_OGSM, [dims.experts_unsplit_dim], reduced_dims=[dims.model_dim],
        use_bias=False, name="router", variable_dtype=mtf.VariableDType(
            stored.master_dtype, stored.slice_dtype, tf.float32))


@gin.configurable
class SwitchRouter(Router):
  """Sends each token to its most probable expert, in order of position.

  An expert takes the first `capacity` tokens of a group that choose it. A later
  one is dropped: the layer adds nothing to it and the residual connection
  carries it on. A tie goes to the expert of lower index.

  Switch Transformer, https://arxiv.org/abs/2101.03961, sections 2.1 and 2.2.
  """

  def assign(
      self, probs_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
  ) -> Routing:
    """See the base class; the weight is the router probability (equation 2)."""
    expert_OGS = mtf.argmax(probs_OGSE, dims.experts_unsplit_dim)
    chosen_OGSE = mtf.one_hot(
        expert_OGS, dims.experts_unsplit_dim, dtype=tf.float32)
    slot_OGS = take_slots(chosen_OGSE * nonpadding_OGS, dims)
    kept_OGS = mtf.cast(
        mtf.less(slot_OGS, dims.capacity_dim.size), tf.float32)
    prob_OGS = mtf.reduce_sum(
        probs_OGSE * chosen_OGSE, reduced_dim=dims.experts_unsplit_dim)

    def one_choice(y_OGS: mtf.Tensor) -> mtf.Tensor:
      return mtf.reshape(y_OGS, dims.OGSK)

    expert_OGSK = one_choice(expert_OGS)
    slot_OGSK = one_choice(slot_OGS)
    return Routing(
        expert_OGSK=expert_OGSK,
        slot_OGSK=slot_OGSK,
        weight_OGSK=one_choice(prob_OGS * kept_OGS),
        choice_OGEC=invert(expert_OGSK, slot_OGSK, dims),
        losses={"load_balancing_loss": load_balancing_loss(
            probs_OGSE, chosen_OGSE, nonpadding_OGS, dims)},
        metrics=routing_metrics(
            probs_OGSE, chosen_OGSE, kept_OGS, nonpadding_OGS, dims))


def take_slots(chosen_OGSE: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
  """Numbers the tokens of each expert in order of position.

  Args:
    chosen_OGSE: float32 - 1 where a real token chooses the expert; all 0 for
      padding.
    dims: sizes.

  Returns:
    int32 [outer_batch, batch, group] - the slot, `capacity` where the expert is
    full or the token is padding.
  """
  capacity = dims.capacity_dim.size

  def count(chosen: tf.Tensor) -> tf.Tensor:
    place = tf.reduce_sum(
        tf.cumsum(chosen, axis=-2, exclusive=True) * chosen, axis=-1)
    slot = tf.minimum(tf.cast(place, tf.int32), capacity)
    real = tf.reduce_sum(chosen, axis=-1) > 0
    return tf.where(real, slot, tf.fill(tf.shape(slot), capacity))

  return mtf.slicewise(
      count, [chosen_OGSE], output_shape=mtf.Shape(dims.OGS),
      output_dtype=tf.int32, splittable_dims=dims.OG, grad_function=0,
      name="take_slots")


def invert(
    expert_OGSK: mtf.Tensor, slot_OGSK: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Finds the choice that holds each slot: `Routing.choice_OGEC`."""
  experts, capacity = dims.experts_dim.size, dims.capacity_dim.size
  choices = dims.group_size_dim.size * dims.choices_dim.size

  def scatter(expert: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    outer, groups = expert.shape.as_list()[:2]
    lines = outer * groups
    # Dropped choices all go to one extra place per group, then cut off.
    place = tf.where(
        slot < capacity, expert * capacity + slot,
        tf.fill(tf.shape(slot), experts * capacity))
    place = tf.reshape(place, [lines, choices])
    line = tf.broadcast_to(tf.range(lines)[:, None], [lines, choices])
    empty = tf.fill([lines, experts * capacity + 1], choices)
    taken = tf.tensor_scatter_nd_update(
        empty, tf.stack([line, place], axis=-1),
        tf.broadcast_to(tf.range(choices), [lines, choices]))
    return tf.reshape(taken[:, :-1], [outer, groups, experts, capacity])

  return mtf.slicewise(
      scatter, [expert_OGSK, slot_OGSK], output_shape=mtf.Shape(dims.OGEC),
      output_dtype=tf.int32, splittable_dims=dims.OG, grad_function=0,
      name="invert_routing")


def routing_metrics(
    probs_OGSE: mtf.Tensor, chosen_OGSE: mtf.Tensor, kept_OGS: mtf.Tensor,
    nonpadding_OGS: mtf.Tensor, dims: MoeDims,
) -> dict[str, mtf.Tensor]:
  """Summarises a routing over all real tokens.

  Args:
    probs_OGSE: float32 - router probabilities.
    chosen_OGSE: float32 - 1 at a token's first choice.
    kept_OGS: float32 - 1 where the token got a slot.
    nonpadding_OGS: float32 - 1 for a real token.
    dims: sizes.

  Returns:
    `expert_load`: [experts_unsplit] - share of the tokens that choose each
      expert; sums to 1.
    `dropped_fraction`: [] - share of the tokens that got no slot.
    `router_entropy`: [] - mean entropy of the router's distribution, in nats.
    `router_probability`: [] - mean probability of the expert chosen.
  """
  real = mtf.reduce_sum(nonpadding_OGS)
  tokens = mtf.maximum(real, 1.0)
  load_E = mtf.reduce_sum(
      chosen_OGSE * nonpadding_OGS, output_shape=[dims.experts_unsplit_dim])
  entropy_OGS = -mtf.reduce_sum(
      probs_OGSE * mtf.log(probs_OGSE + 1e-9),
      reduced_dim=dims.experts_unsplit_dim)
  kept = mtf.reduce_sum(kept_OGS * nonpadding_OGS)
  prob = mtf.reduce_sum(probs_OGSE * chosen_OGSE * nonpadding_OGS)
  return {
      "expert_load": load_E / tokens,
      "dropped_fraction": (real - kept) / tokens,
      "router_entropy": mtf.reduce_sum(entropy_OGS * nonpadding_OGS) / tokens,
      "router_probability": prob / tokens,
  }
