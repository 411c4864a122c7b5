"""Against the other gatings of mesh_tensorflow's MoE1D.

"switch" is in test_parity_mtf.py; "top_n" and MoE2D have no counterpart here.
"""

import functools
import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import BuiltLayer
from helpers.parity import (
  HIDDEN,
  LOSS_COEF,
  MODEL,
  OTHER,
  TOLERANCE,
  draw,
  factors,
  gating,
  renamed,
)
from mesh_tensorflow.transformer.moe import MoE1D

from switch_mtf.layers.dispatch import EinsumDispatcher
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routers import (
  AlwaysSecond,
  ExpertChoiceRouter,
  NeverSecond,
  NoTokenLeftBehindRouter,
  SecondAboveThreshold,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

# batch, length, experts, group_size, capacity factor, minimum, mode, capacity.
# Upstream rounds group_size to what divides and lets the minimum exceed the
# group, so that only sizes where neither happens are compared. The factor and
# the policy of the other mode are others.
SHAPES = {
    "plain": (4, 8, 4, 16, 1.25, 1, "train", 5),
    "plain, eval": (4, 8, 4, 16, 1.25, 1, "eval", 5),
    "capacity 1": (4, 8, 4, 4, 1.0, 1, "train", 1),
    "minimum capacity": (4, 8, 4, 16, .25, 4, "eval", 4),
    "one group": (4, 8, 4, 32, 1.0, 1, "train", 8),
    "more experts than tokens": (2, 4, 7, 4, 2.0, 1, "train", 1),
    "ample": (2, 8, 3, 8, 3.0, 1, "eval", 8),
    "one expert": (2, 8, 1, 8, .5, 1, "train", 4),
}

SECOND = {"all": AlwaysSecond, "none": NeverSecond,
          "threshold": functools.partial(SecondAboveThreshold, .3)}
# Policy "random" is not compared: each side draws numbers of its own. Which
# policy rules the other mode must not matter.
TOP_2 = {f"top_2, {policy}": policy for policy in SECOND}
NTLB = {f"ntlb, {rounds}": rounds for rounds in (1, 2, 4)}


def upstream_options(name, mode):
  if name in TOP_2:
    return {f"second_policy_{mode}": TOP_2[name],
            f"second_policy_{OTHER[mode]}": "random",
            f"second_threshold_{mode}": .3,
            "use_second_place_loss": name != "top_2, none"}
  if name in NTLB:
    return {"ntlb_top_k": NTLB[name]}
  return {}


def router(name, mode):
  if name in TOP_2:
    return Top2Router(
        Argmax(), second_place_weight=0.0 if name == "top_2, none" else .5,
        **{f"second_{mode}": SECOND[TOP_2[name]]()})
  if name in NTLB:
    return NoTokenLeftBehindRouter(Argmax(), rounds=NTLB[name])
  if name == "switch_max":
    return SwitchRouter(Argmax(), prioritized=True)
  return ExpertChoiceRouter(Argmax(), softmax_over_tokens=True)


def same_loss(name):
  """Where both define it alike; see the documented differences below."""
  return name in TOP_2 or name in ("switch_max", "ntlb, 1")


def without_loss(layer):
  """The layer, with 0 for the losses that are not compared."""
  def call(context, x):
    y = layer.call(context, x)
    context.losses = [mtf.zeros(x.mesh, mtf.Shape([]))]
    return y

  return types.SimpleNamespace(call=call)


def build(layer, shape, name, **options):
  batch, length, *_, mode, _ = SHAPES[shape]
  return BuiltLayer(
      layer if same_loss(name) else without_loss(layer),
      f"batch:{batch},length:{length},d_model:{MODEL}", mode=mode,
      gradients=True, **options)


@functools.cache
def ours(name, shape, dispatcher=None):
  _, _, experts, group, factor, minimum, mode, _ = SHAPES[shape]
  layer = SwitchFFN(
      num_experts=experts, hidden_size=HIDDEN, group_size=group,
      **factors(mode, factor), min_capacity=minimum,
      load_balancing_coef=LOSS_COEF, router=router(name, mode),
      dispatcher=dispatcher and dispatcher())
  return build(layer, shape, name)


@functools.cache
def theirs(name, shape):
  _, _, experts, group, factor, minimum, mode, _ = SHAPES[shape]
  layer = MoE1D(
      moe_gating=gating(name), num_experts=experts, hidden_size=HIDDEN,
      group_size=group, **factors(mode, factor), min_expert_capacity=minimum,
      loss_coef=LOSS_COEF, switch_policy_train="argmax",
      switch_policy_eval="argmax", **upstream_options(name, mode))
  return build(layer, shape, name, scope="layer/MoE1D")


def check(name, shape, dispatcher=None):
  """Same weights, no padding: outputs, every gradient, the loss."""
  weights, x, dy = draw(shape, *SHAPES[shape][:3])
  mine = ours(name, shape, dispatcher)(weights, x, dy=dy)
  right = theirs(name, shape)(renamed(weights, gating(name)), x, dy=dy)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  if same_loss(name):
    assert right["loss"] > LOSS_COEF / 2
  assert mine["loss"] == pytest.approx(right["loss"], abs=TOLERANCE)
  for variable, upstream in zip(
      ("x", *weights), ("x", *renamed(weights, gating(name))), strict=True):
    np.testing.assert_allclose(
        mine[f"d {variable}"], right[f"d {upstream}"], atol=TOLERANCE,
        rtol=TOLERANCE, err_msg=variable)
  if shape != "one expert":
    assert np.abs(right[f"d {gating(name)}_gating/kernel"]).max() > .01
  return right["y"]


class Facts:
  """What the tokens of a shape want, without either library: GSE arrays."""

  def __init__(self, shape):
    batch, length, experts, group, factor, minimum, _, capacity = SHAPES[shape]
    assert capacity == max(minimum, int(group * factor / experts)) <= group
    weights, x, _ = draw(shape, *SHAPES[shape][:3])
    logits = x.reshape(-1, group, MODEL) @ weights["router/kernel"]
    self.capacity = capacity
    self.probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    self.over_tokens = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    self.best = np.argsort(-logits, axis=-1)

  def asks(self, k):
    """1 at the token's k-th best expert."""
    return np.eye(self.best.shape[-1])[self.best[..., k]]

  def too_late(self, real=None):
    """GS: tokens that find their best expert full, in order of position."""
    asks = self.asks(0)
    if real is not None:
      asks *= real.reshape(*asks.shape[:2], 1)
    return (np.cumsum(asks, axis=1) * asks).sum(-1) > self.capacity

  def lost(self, y):
    """GS: tokens of which nothing came back."""
    return (y == 0).all(axis=-1).reshape(self.best.shape[:2])


@pytest.mark.parametrize("name, shape", [
    *(("top_2, all", shape) for shape in SHAPES),
    *(("top_2, none", shape) for shape in ("plain", "capacity 1", "ample")),
    *(("top_2, threshold", shape) for shape in (
        "plain", "plain, eval", "minimum capacity"))])
def test_top_2(name, shape):
  y = check(name, shape)
  facts = Facts(shape)
  lost, late = facts.lost(y), facts.too_late()
  assert late.any() == (shape != "ample")
  if shape == "one expert" or name == "top_2, none":
    np.testing.assert_array_equal(lost, late)
    return
  p_1, p_2 = -np.sort(-facts.probs, axis=-1)[..., :2].transpose(2, 0, 1)
  gate = p_2 / (p_1 + p_2)
  assert gate.min() < .3 < gate.max()
  asks = facts.asks(1)
  if name == "top_2, threshold":
    asks *= gate[..., None] > .3
  # Some second choices find a slot after the first ones, some do not.
  free = facts.capacity - np.minimum(facts.asks(0).sum(1), facts.capacity)
  asks = asks.sum(1)
  assert (np.minimum(asks, free) > 0).any()
  assert (asks > free).any() == (shape != "ample")


@pytest.mark.parametrize("name, shape", [
    *(("ntlb, 1", shape) for shape in ("plain", "minimum capacity")),
    *(("ntlb, 2", shape) for shape in (
        "plain, eval", "capacity 1", "more experts than tokens")),
    *(("ntlb, 4", shape) for shape in (
        "plain", "minimum capacity", "one group", "ample", "one expert"))])
def test_no_token_left_behind(name, shape):
  # Upstream's fourth choice of three experts, or second of one, is one that
  # the token asked before, and is full: it changes nothing.
  y = check(name, shape)
  facts = Facts(shape)
  lost, late = facts.lost(y), facts.too_late()
  assert late.any() == (shape != "ample")
  assert not (lost & ~late).any()
  # Later rounds find a place for some of those that came too late.
  rescued = (late & ~lost).any()
  assert rescued == (
      NTLB[name] > 1 and shape not in ("ample", "one expert"))


@pytest.mark.parametrize("shape", SHAPES)
def test_switch_max(shape):
  y = check("switch_max", shape)
  facts = Facts(shape)
  lost, late = facts.lost(y), facts.too_late()
  # As many are lost as in order of position, but others.
  assert lost.sum() == late.sum()
  assert (lost != late).any() == (shape not in ("ample", "one expert"))


@pytest.mark.parametrize("shape", SHAPES)
def test_expert_selection(shape):
  y = check("expert_selection", shape)
  facts = Facts(shape)
  limit = -np.sort(-facts.over_tokens, axis=1)[:, facts.capacity - 1]
  takers = (facts.over_tokens >= limit[:, None]).sum(-1)
  np.testing.assert_array_equal(facts.lost(y), takers == 0)
  assert (takers == 0).any() == (shape != "ample")
  assert (takers > 1).any() == (shape != "one expert")


@pytest.mark.parametrize(
    "name", ["top_2, all", "ntlb, 4", "switch_max", "expert_selection"])
def test_the_dispatcher_of_tpus(name):
  # The other one is the default here.
  check(name, "plain", EinsumDispatcher)


@pytest.mark.parametrize("name", [
    "top_2, all", "top_2, threshold", "ntlb, 4", "switch_max",
    "expert_selection"])
def test_output_with_padding(name):
  # The losses differ, see below. In the first group there are 5 slots for each
  # expert and 3 tokens, in the second one some tokens come too late.
  weights, x, _ = draw("plain", *SHAPES["plain"][:3])
  real = np.ones([4, 8], np.float32)
  real[:2, :-2] = real[1, -2] = real[3, 1] = 0
  assert Facts("plain").too_late(real)[1].any()
  mine = ours(name, "plain")(weights, x, real)
  right = theirs(name, "plain")(renamed(weights, gating(name)), x, real)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  lost = (right["y"] == 0).all(axis=-1)
  assert lost[real == 0].all()
  assert not lost[:2][real[:2] == 1].any()
  assert np.isfinite([np.abs(mine[f"d {key}"]).max() for key in weights]).all()
