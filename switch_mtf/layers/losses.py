"""Auxiliary losses of a router, as pure functions of tensors."""

import mesh_tensorflow as mtf

from switch_mtf.dims import MoeDims, check_shape


def load_balancing_loss(
    probs_OGSE: mtf.Tensor,
    chosen_OGSE: mtf.Tensor,
    nonpadding_OGS: mtf.Tensor,
    dims: MoeDims,
) -> mtf.Tensor:
  """Returns the load-balancing loss; 1 for evenly spread tokens.

  The loss of a group is E * sum_i f_i P_i. Over the group's real tokens, f_i is
  the share whose first choice is expert i (before any is dropped; not
  differentiable), and P_i is the mean router probability of expert i. The
  result is the mean over the groups that hold a real token, not scaled by a
  coefficient.

  Switch Transformer, https://arxiv.org/abs/2101.03961, equations 4-6 without
  alpha. Unlike in mesh_tensorflow, padding enters neither f_i nor P_i.

  Args:
    probs_OGSE: float32 [outer_batch, batch, group, experts_unsplit] - router
      probabilities; they sum to 1 over the experts.
    chosen_OGSE: float32, same shape - 1 at the token's first choice, else 0.
    nonpadding_OGS: float32 [outer_batch, batch, group] - 1 for a real token.
    dims: sizes of the layer's dimensions.

  Returns:
    float32 [] - the loss, in [0, num_experts].

  Raises:
    ValueError: if an argument's dimensions are not those above, in that order.
  """
  check_shape(probs_OGSE, dims.OGSE, "load_balancing_loss probs")
  check_shape(chosen_OGSE, dims.OGSE, "load_balancing_loss chosen")
  check_shape(nonpadding_OGS, dims.OGS, "load_balancing_loss nonpadding")
  tokens_OG = mtf.reduce_sum(nonpadding_OGS, reduced_dim=dims.group_size_dim)
  scale_OG = mtf.reciprocal(mtf.maximum(tokens_OG, 1.0))

  def share(y_OGSE: mtf.Tensor) -> mtf.Tensor:
    total_OGE = mtf.reduce_sum(
        y_OGSE * nonpadding_OGS, reduced_dim=dims.group_size_dim)
    return total_OGE * scale_OG

  f_OGE = mtf.stop_gradient(share(chosen_OGSE))
  loss_OG = dims.experts_dim.size * mtf.reduce_sum(
      f_OGE * share(probs_OGSE), reduced_dim=dims.experts_unsplit_dim)
  groups = mtf.reduce_sum(mtf.minimum(tokens_OG, 1.0))
  return mtf.reduce_sum(loss_OG) / mtf.maximum(groups, 1.0)


def router_z_loss(
    logits_OGSE: mtf.Tensor, nonpadding_OGS: mtf.Tensor, dims: MoeDims
) -> mtf.Tensor:
  """Returns the router z-loss, which keeps logits small.

  The loss is the mean over real tokens of (log sum_j exp logit_j)^2, not scaled
  by a coefficient.

  Zoph et al., ST-MoE, https://arxiv.org/abs/2202.08906, equation 5.

  Args:
    logits_OGSE: float32 [outer_batch, batch, group, experts_unsplit] - the
      router's logits.
    nonpadding_OGS: float32 [outer_batch, batch, group] - 1 for a real token.
    dims: sizes of the layer's dimensions.

  Returns:
    float32 [] - the loss.

  Raises:
    ValueError: if an argument's dimensions are not those above, in that order.
  """
  check_shape(logits_OGSE, dims.OGSE, "router_z_loss logits")
  check_shape(nonpadding_OGS, dims.OGS, "router_z_loss nonpadding")
  log_z_OGS = mtf.reduce_logsumexp(logits_OGSE, dims.experts_unsplit_dim)
  tokens = mtf.maximum(mtf.reduce_sum(nonpadding_OGS), 1.0)
  return mtf.reduce_sum(mtf.square(log_z_OGS) * nonpadding_OGS) / tokens
