"""Balanced routing: token i of a group goes to expert i mod experts.

Randomly initialised routers send most tokens to a few experts, so code that
skips idle experts would win by doing less work.
"""

import contextlib

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.layers.routing import SwitchRouter


def _experts_of(group_dim: mtf.Dimension, experts_dim: mtf.Dimension, mesh):
  """Returns int32 [group] - the expert of each token."""
  return mtf.mod(mtf.range(mesh, group_dim, tf.int32), experts_dim.size)


@gin.configurable
class BalancedRouter(SwitchRouter):
  """The paper's router with the preferred expert fixed by position."""

  def assign(
      self, probs_OGSE, preference_OGSE, nonpadding_OGS, dims, train):
    """See the base class; `preference_OGSE` is ignored."""
    expert_S = _experts_of(
        dims.group_size_dim, dims.experts_unsplit_dim, probs_OGSE.mesh)
    preference_SE = mtf.one_hot(expert_S, dims.experts_unsplit_dim)
    return super().assign(
        probs_OGSE, mtf.broadcast(preference_SE, mtf.Shape(dims.OGSE)),
        nonpadding_OGS, dims, train)


@contextlib.contextmanager
def balanced_upstream():
  """Makes upstream's `mtf.top_1` spread a group over the experts."""
  upstream = mtf.top_1

  def top_1(x, reduced_dim, name=None):
    del name
    expert = mtf.broadcast(
        _experts_of(x.shape.get_dim_by_name("group"), reduced_dim, x.mesh),
        x.shape - reduced_dim)
    gate = mtf.reduce_sum(
        x * mtf.one_hot(expert, reduced_dim, dtype=x.dtype),
        reduced_dim=reduced_dim)
    return gate, expert

  mtf.top_1 = top_1
  try:
    yield
  finally:
    mtf.top_1 = upstream
