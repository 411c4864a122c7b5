"""Against mesh_tensorflow's own MoE1D(moe_gating="switch")."""

import functools

import numpy as np
import pytest
from helpers.graphs import BuiltLayer
from helpers.parity import (
  HIDDEN,
  LOSS_COEF,
  MODEL,
  TOLERANCE,
  draw,
  factors,
  renamed,
)
from mesh_tensorflow.transformer.moe import MoE1D

from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

# batch, length, experts, group_size, capacity factor, minimum, mode, whether
# some tokens are dropped. Upstream rounds group_size to what divides, so that
# only sizes that do are compared. The factor of the other mode is another.
CASES = {
    "plain": (4, 8, 4, 16, 1.25, 1, "train", True),
    "plain, eval": (4, 8, 4, 16, 1.25, 1, "eval", True),
    "one group": (4, 8, 4, 32, 1.0, 4, "train", True),
    "group is a sequence": (4, 8, 4, 8, 1.25, 1, "eval", True),
    "capacity 1": (4, 8, 4, 4, 1.0, 1, "train", True),
    "minimum capacity": (4, 8, 4, 16, .25, 4, "train", True),
    "minimum above the group": (4, 2, 4, 2, 1.25, 4, "train", False),
    "ample": (2, 8, 3, 8, 3.0, 1, "eval", False),
    "one expert": (2, 8, 1, 8, .5, 1, "train", True),
    "more experts than tokens": (2, 4, 7, 4, 2.0, 1, "train", True),
}


def ours(case, dispatcher=None):
  batch, length, experts, group, factor, minimum, mode, _ = CASES[case]
  layer = SwitchFFN(
      num_experts=experts, hidden_size=HIDDEN, group_size=group,
      **factors(mode, factor), min_capacity=minimum,
      load_balancing_coef=LOSS_COEF,
      router=SwitchRouter(Argmax()), dispatcher=dispatcher)
  return BuiltLayer(layer, f"batch:{batch},length:{length},d_model:{MODEL}",
                    mode=mode, gradients=True)


@functools.cache
def theirs(case):
  batch, length, experts, group, factor, minimum, mode, _ = CASES[case]
  layer = MoE1D(
      moe_gating="switch", num_experts=experts, hidden_size=HIDDEN,
      group_size=group, **factors(mode, factor), min_expert_capacity=minimum,
      loss_coef=LOSS_COEF, switch_jitter=0.0)
  return BuiltLayer(layer, f"batch:{batch},length:{length},d_model:{MODEL}",
                    mode=mode, gradients=True, scope="layer/MoE1D")


def check(case, dispatcher=None):
  """Same weights, no padding: outputs, loss, every gradient."""
  batch, length, experts, *_ = CASES[case]
  weights, x, dy = draw(case, batch, length, experts)
  mine = ours(case, dispatcher)(weights, x, dy=dy)
  right = theirs(case)(renamed(weights, "switch"), x, dy=dy)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  assert mine["loss"] == pytest.approx(right["loss"], abs=TOLERANCE)
  for name, upstream in zip(
      ("x", *weights), ("x", *renamed(weights, "switch")), strict=True):
    np.testing.assert_allclose(
        mine[f"d {name}"], right[f"d {upstream}"], atol=TOLERANCE,
        rtol=TOLERANCE, err_msg=name)
  return right


@pytest.mark.parametrize("case", CASES)
def test_output_loss_and_gradients(case):
  # Upstream needs a tensor of ones to know that there is no padding; its loss
  # is scaled by loss_coef, as ours is by load_balancing_coef.
  right = check(case)
  # The cases are what they say, else parity would say nothing of which tokens
  # are dropped, nor of the router.
  dropped = (right["y"] == 0).all(axis=-1).any()
  assert dropped == CASES[case][-1]
  if case != "one expert":
    assert np.abs(right["d switch_gating/kernel"]).max() > .01


@pytest.mark.parametrize("dispatcher", [EinsumDispatcher, GatherDispatcher])
def test_either_dispatcher(dispatcher):
  check("plain", dispatcher())


def test_documented_difference_padding_in_the_load_balancing_loss():
  # The outputs agree with padding, too, but the losses do not. One group of 8
  # tokens, 2 experts, 4 real tokens. W_r = (a, -a) with x = 1 or -1 in the
  # first feature, so that p = (q, 1 - q) or (1 - q, q), with q = 1 / (1 +
  # e^-2a). Real: three choose expert 0, one expert 1. Padding: x = 0, p =
  # (1/2, 1/2), by argmax expert 0.
  # Ours, over real tokens: f = (3/4, 1/4), P_0 = (3 q + 1 - q) / 4.
  # Upstream, over all 8: f = (7/8, 1/8), P_0 = ((2 q + 1) + 2) / 8; its mean of
  # f P is then averaged with 0 for the padded half (peers.md A.4, 7): times
  # 1/2.
  a = 1.5
  q = 1 / (1 + np.exp(-2 * a))
  x = np.zeros([1, 8, 1], np.float32)
  x[0, :4, 0] = [1, 1, -1, 1]
  real = np.float32([[1, 1, 1, 1, 0, 0, 0, 0]])
  weights = {"router/kernel": np.float32([[a, -a]]),
             "wi/kernel": np.ones([2, 1, 3]), "wo/kernel": np.ones([2, 3, 1])}
  common = dict(num_experts=2, hidden_size=3, group_size=8)
  shape = "batch:1,length:8,d_model:1"
  mine = BuiltLayer(SwitchFFN(
      load_balancing_coef=1.0, router=SwitchRouter(Argmax()), **common), shape)(
          weights, x, real)
  right = BuiltLayer(MoE1D(
      moe_gating="switch", loss_coef=1.0, switch_jitter=0.0, **common), shape,
                     scope="layer/MoE1D")(renamed(weights, "switch"), x, real)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)

  p_0 = (2 * q + 1) / 4
  assert mine["loss"] == pytest.approx(
      2 * (3 / 4 * p_0 + 1 / 4 * (1 - p_0)), abs=TOLERANCE)
  p_0 = (2 * q + 1 + 2) / 8
  assert right["loss"] == pytest.approx(
      2 * (7 / 8 * p_0 + 1 / 8 * (1 - p_0)) / 2, abs=TOLERANCE)
