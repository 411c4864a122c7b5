"""Against the other gatings of mesh_tensorflow's MoE1D.

"switch" is in test_parity_mtf.py; "top_n" and MoE2D have no counterpart here.
"""

import functools
import math
import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import BuiltLayer, lower, random_weights
from mesh_tensorflow.transformer import moe, transformer, transformer_layers
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

TOLERANCE = 1e-5
MODEL, HIDDEN = 6, 8
LOSS_COEF = .3
OTHER = {"train": "eval", "eval": "train"}

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


def gating(name):
  return name.split(",")[0]


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


def changed(layer, change):
  """The layer, with something done to its context before it is called."""
  def call(context, x):
    change(context)
    return layer.call(context, x)

  return types.SimpleNamespace(call=call)


def without_loss(layer):
  """The layer; BuiltLayer wants one loss, which is 0."""
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


def factors(shape):
  *_, factor, _, mode, _ = SHAPES[shape]
  return {f"capacity_factor_{mode}": factor,
          f"capacity_factor_{OTHER[mode]}": factor * 2}


@functools.cache
def ours(name, shape, dispatcher=None):
  _, _, experts, group, _, minimum, mode, _ = SHAPES[shape]
  layer = SwitchFFN(
      num_experts=experts, hidden_size=HIDDEN, group_size=group,
      **factors(shape), min_capacity=minimum, load_balancing_coef=LOSS_COEF,
      router=router(name, mode), dispatcher=dispatcher and dispatcher())
  return build(layer, shape, name)


@functools.cache
def theirs(name, shape):
  _, _, experts, group, _, minimum, mode, _ = SHAPES[shape]
  layer = MoE1D(
      moe_gating=gating(name), num_experts=experts, hidden_size=HIDDEN,
      group_size=group, **factors(shape), min_expert_capacity=minimum,
      loss_coef=LOSS_COEF, switch_policy_train="argmax",
      switch_policy_eval="argmax", **upstream_options(name, mode))
  return build(layer, shape, name, scope="layer/MoE1D")


def draw(shape):
  batch, length, experts, *_ = SHAPES[shape]
  rng = np.random.default_rng(len(shape))
  x, dy = rng.normal(size=[2, batch, length, MODEL]).astype(np.float32)
  weights = random_weights(rng, model=MODEL, hidden=HIDDEN, experts=experts)
  return weights, x, dy


def renamed(values, name):
  kernel = "router/kernel"
  return {f"{gating(name)}_gating/kernel" if k == kernel else k: v
          for k, v in values.items()}


def check(name, shape, dispatcher=None):
  """Same weights, no padding: outputs, every gradient, the loss."""
  weights, x, dy = draw(shape)
  mine = ours(name, shape, dispatcher)(weights, x, dy=dy)
  right = theirs(name, shape)(renamed(weights, name), x, dy=dy)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  if same_loss(name):
    assert right["loss"] > LOSS_COEF / 2
  assert mine["loss"] == pytest.approx(right["loss"], abs=TOLERANCE)
  for variable, upstream in zip(
      ("x", *weights), ("x", *renamed(weights, name)), strict=True):
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
    weights, x, _ = draw(shape)
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
  weights, x, _ = draw("plain")
  real = np.ones([4, 8], np.float32)
  real[:2, :-2] = real[1, -2] = real[3, 1] = 0
  assert Facts("plain").too_late(real)[1].any()
  mine = ours(name, "plain")(weights, x, real)
  right = theirs(name, "plain")(renamed(weights, name), x, real)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  lost = (right["y"] == 0).all(axis=-1)
  assert lost[real == 0].all()
  assert not lost[:2][real[:2] == 1].any()
  assert np.isfinite([np.abs(mine[f"d {key}"]).max() for key in weights]).all()


# Documented differences. Layers by hand: d_model 1, one hidden unit, every
# expert max(x, 0), so that y is x times the weights.


def by_hand(kernel):
  """Weights: logits are x * kernel."""
  experts = len(kernel)
  return {"router/kernel": np.float32([kernel]),
          "wi/kernel": np.ones([experts, 1, 1], np.float32),
          "wo/kernel": np.ones([experts, 1, 1], np.float32)}


def one_group(values):
  """x or nonpadding of one sequence."""
  return np.float32(values)[None]


def mtf_layer(name, **options):
  options = {"hidden_size": 1, "group_size": 8, "loss_coef": 1.0,
             "switch_policy_train": "argmax", "switch_policy_eval": "argmax",
             "second_policy_train": "all", "second_policy_eval": "all",
             "min_expert_capacity": 1, **options}
  return MoE1D(moe_gating=name, **options)


def our_layer(router, **options):
  options = {"hidden_size": 1, "group_size": 8, "load_balancing_coef": 1.0,
             "min_capacity": 1, **options}
  return SwitchFFN(router=router, **options)


def run(layer, kernel, x, real=None, mode="train", name=None):
  """One sequence through a layer of either library; `name`: upstream's."""
  built = BuiltLayer(
      layer, f"batch:1,length:{len(x)},d_model:1", mode=mode, scope="layer")
  weights = by_hand(kernel)
  return built(renamed(weights, name) if name else weights,
               one_group(x)[..., None],
               None if real is None else one_group(real))


PADDED_ROUTERS = {
    "switch_max": lambda: SwitchRouter(Argmax(), prioritized=True),
    "ntlb": lambda: NoTokenLeftBehindRouter(Argmax(), rounds=1),
    "top_2": lambda: Top2Router(Argmax(), second_train=AlwaysSecond()),
    "top_2, second place": lambda: Top2Router(
        Argmax(), second_train=AlwaysSecond(), second_place_weight=.5)}


@pytest.mark.parametrize("name", PADDED_ROUTERS)
def test_documented_difference_padding_in_the_load_balancing_loss(name):
  # One group of 8 tokens, 4 of them real, of which three choose expert 0. With
  # W_r = (a, -a) and x = 1 or -1, p = (q, 1 - q) or (1 - q, q), where q = 1 /
  # (1 + e^-2a). Padding has x = 0: p = (1/2, 1/2), by argmax expert 0.
  # Ours, over real tokens: f = (3/4, 1/4), P_0 = (3 q + 1 - q) / 4. Second
  # choices, of the only expert that is left: f = P = (1/4, 3/4).
  # Upstream's switch_max and ntlb are like its switch: over all 8, f = (7/8,
  # 1/8), P_0 = (2 q + 1 + 2) / 8, and the padded half of the mean is 0.
  # Its top_2 leaves padding out of f and P, but divides both by 8: a quarter.
  # Of second choices f = (1, 3) / 8, and P counts padding, of which no first
  # choice was taken away: ((1, 3) + 4 (1/2, 1/2)) / 8 = (3, 5) / 8.
  a = 1.5
  q = 1 / (1 + np.exp(-2 * a))
  x = [1, 1, -1, 1, 0, 0, 0, 0]
  real = [1, 1, 1, 1, 0, 0, 0, 0]
  mine = run(our_layer(PADDED_ROUTERS[name](), num_experts=2, min_capacity=8),
             [a, -a], x, real)
  right = run(
      mtf_layer(gating(name), num_experts=2, min_expert_capacity=8,
                ntlb_top_k=1, use_second_place_loss="second" in name),
      [a, -a], x, real, name=name)
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)

  def balance(f_0, p_0):
    return 2 * (f_0 * p_0 + (1 - f_0) * (1 - p_0))

  p_0 = (2 * q + 1) / 4
  expected = balance(3 / 4, p_0)
  if name.startswith("top_2"):
    upstream = expected / 4
  else:
    upstream = balance(7 / 8, (2 * q + 1 + 2) / 8) / 2
  if name == "top_2, second place":
    expected += .5 * balance(1 / 4, 1 / 4)
    upstream += .5 * 2 * (1 * 3 + 3 * 5) / 64
  assert mine["loss"] == pytest.approx(expected, abs=TOLERANCE)
  assert right["loss"] == pytest.approx(upstream, abs=TOLERANCE)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_documented_difference_z_loss_is_scaled_twice_and_not_in_eval(mode):
  # W_r = (log 3, 0), x = 1: p = (3/4, 1/4), log sum exp = log 4. All choose
  # expert 0: the load-balancing loss is 2 * 1 * 3/4 = 3/2. Coefficients 1/10
  # and 1/5; ours applies each once, upstream the first to the second, too.
  z_loss = math.log(4)**2
  kernel, x = [math.log(3), 0], [1, 1, 1, 1]
  mine = run(our_layer(SwitchRouter(Argmax()), num_experts=2,
                       load_balancing_coef=.1, router_z_coef=.2),
             kernel, x, mode=mode)
  right = run(mtf_layer("switch", num_experts=2, loss_coef=.1, z_loss=.2),
              kernel, x, mode=mode, name="switch")
  assert mine["loss"] == pytest.approx(.1 * 1.5 + .2 * z_loss, abs=TOLERANCE)
  upstream = {"train": .1 * (1.5 + .2 * z_loss), "eval": .1 * 1.5}[mode]
  assert right["loss"] == pytest.approx(upstream, abs=TOLERANCE)


def test_documented_difference_z_loss_without_microbatches_fails():
  def alter(context):
    context.num_microbatches = None

  kernel, x = [math.log(3), 0], [1, 1, 1, 1]
  mine = run(changed(our_layer(
      SwitchRouter(Argmax()), num_experts=2, router_z_coef=.2), alter),
             kernel, x)
  assert mine["loss"] == pytest.approx(1.5 + .2 * math.log(4)**2)
  # It divides by None, which shows when the graph is lowered.
  with pytest.raises(ValueError, match="None values not supported"):
    run(changed(mtf_layer("switch", num_experts=2, z_loss=.2), alter), kernel,
        x, name="switch")
  run(changed(mtf_layer("switch", num_experts=2), alter), kernel, x,
      name="switch")


@pytest.mark.parametrize("rounds, upstream", [(1, 1.5), (2, 1.2), (3, 1.0)])
def test_documented_difference_ntlb_loss_counts_every_choice(rounds, upstream):
  # x = 1, W_r = log (.5, .3, .2): P is that, and all tokens choose alike. Ours
  # is equation 5: f = (1, 0, 0), 3 * .5 = 1.5. Upstream's f is the mean over
  # the choices: (1/2, 1/2, 0), 3 * (.5 + .3) / 2 = 1.2; with as many choices
  # as experts it is uniform, and the loss is 1 whatever the router does.
  kernel, x = np.log([.5, .3, .2]), [1] * 4
  mine = run(our_layer(NoTokenLeftBehindRouter(Argmax(), rounds),
                       num_experts=3), kernel, x)
  right = run(mtf_layer("ntlb", num_experts=3, ntlb_top_k=rounds), kernel, x,
              name="ntlb")
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  assert mine["loss"] == pytest.approx(1.5, abs=TOLERANCE)
  assert right["loss"] == pytest.approx(upstream, abs=TOLERANCE)


def test_documented_difference_expert_selection_has_a_loss():
  # Two tokens, x = (1, 0), W_r = (log 3, 0): of the tokens expert 0 gives (3/4,
  # 1/4), expert 1 (1/2, 1/2). Their mean is a = (5/8, 3/8), upstream's loss
  # S * sum a^2 = 2 * (25 + 9) / 64 = 17/16: 1 where all tokens are liked alike.
  # Ours has none, as the experts are balanced by construction.
  seen = []

  def call(context, x):
    y = our_layer(ExpertChoiceRouter(Argmax(), softmax_over_tokens=True),
                  num_experts=2).call(context, x)
    seen.extend(context.losses)
    context.losses = [mtf.zeros(x.mesh, mtf.Shape([]))]
    return y

  kernel, x = [math.log(3), 0], [1, 0]
  mine = run(types.SimpleNamespace(call=call), kernel, x)
  assert not seen and "load_balancing_loss" not in mine
  right = run(mtf_layer("expert_selection", num_experts=2), kernel, x,
              name="expert_selection")
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  assert right["loss"] == pytest.approx(17 / 16, abs=TOLERANCE)


def test_documented_difference_capacity_may_exceed_the_group():
  # 4 experts, groups of 2, at least 4 slots. Ours: 2 slots, 4 * 2 / 2 = 4 per
  # token; upstream computes 4 slots, 8 per token, for the same result.
  mine = run(our_layer(SwitchRouter(Argmax()), num_experts=4, group_size=2,
                       min_capacity=4), [1, 0, 0, 0], [1, 2, 3, 4])
  slots = set()

  def call(context, x):
    y = layer.call(context, x)
    slots.update(dim.size for op in x.mesh.graph.operations
                 for out in op.outputs for dim in out.shape.dims
                 if dim.name == "expert_capacity")
    return y

  layer = mtf_layer(
      "switch", num_experts=4, group_size=2, min_expert_capacity=4)
  right = run(types.SimpleNamespace(call=call), [1, 0, 0, 0], [1, 2, 3, 4],
              name="switch")
  np.testing.assert_allclose(mine["y"], right["y"], atol=TOLERANCE)
  assert mine["capacity_factor"] == 4
  assert slots == {4}


@pytest.mark.parametrize("name, expected, upstream", [
    ("switch_max", [1, 2], [1 - 1e9, 2 * (1 - 1e9)]),
    ("expert_selection", [.5, 1], [(.5 - 1e9) / 2, .5 - 1e9])])
def test_documented_difference_small_groups_of_experts_that_pick(
    name, expected, upstream):
  # One expert, one group of x = (1, 2), at least 4 slots, which is upstream's
  # default. There an expert picks the best token 4 times; each time it takes
  # 1e9 off the one picked, so that the third and fourth picks are the two
  # tokens again, with -1e9. Weights: switch_max 1, expert_selection 1/2 (W_r =
  # 0), over the number of picks of the token, 2.
  mine = run(our_layer(
      SwitchRouter(Argmax(), prioritized=True) if name == "switch_max" else
      ExpertChoiceRouter(Argmax(), softmax_over_tokens=True), num_experts=1,
      min_capacity=4, router_z_coef=1.0), [0], [1, 2])
  np.testing.assert_allclose(mine["y"][0, :, 0], expected, atol=TOLERANCE)

  right = run(mtf_layer(name, num_experts=1, min_expert_capacity=4), [0],
              [1, 2], name=name)
  np.testing.assert_allclose(right["y"][0, :, 0], upstream, rtol=1e-5)

  # From 5 slots on another algorithm picks, and refuses.
  with pytest.raises(ValueError, match="k_dim.size must be <= reduced_dim"):
    run(mtf_layer(name, num_experts=1, min_expert_capacity=5), [0], [1, 2],
        name=name)


def test_documented_difference_groups_may_exceed_group_size():
  # 12 tokens in groups of at most 8: 12 // 8 = 1 group of 12.
  assert moe._split_into_groups(12, 8, 1) == (1, 12)
  with pytest.raises(ValueError, match="group_size"):
    run(our_layer(SwitchRouter(Argmax()), num_experts=2), [1, 0], [1] * 12)


@pytest.mark.parametrize("what", ["layout", "mesh_shape"])
@pytest.mark.parametrize("name", ["switch", "top_2"])
def test_documented_difference_no_layout_fails(name, what):
  def alter(context):
    setattr(context.model, what, None)

  with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
    run(changed(mtf_layer(name, num_experts=2), alter), [1, 0], [1, 2],
        name=name)
  # p = (e, 1) / (1 + e) and (e^2, 1) / (1 + e^2); both choose expert 0.
  mine = run(changed(our_layer(SwitchRouter(Argmax()), num_experts=2,
                               min_capacity=2), alter), [1, 0], [1, 2])
  e = math.e
  np.testing.assert_allclose(
      mine["y"][0, :, 0], [e / (1 + e), 2 * e**2 / (1 + e**2)], atol=TOLERANCE)


@pytest.mark.parametrize("name, router", [
    ("top_2", functools.partial(Top2Router, second_train=AlwaysSecond())),
    ("switch", SwitchRouter),
    ("switch_max", functools.partial(SwitchRouter, prioritized=True)),
    ("expert_selection",
     functools.partial(ExpertChoiceRouter, softmax_over_tokens=True))])
def test_documented_difference_no_tensor_of_nonpadding_fails(name, router):
  # A stack whose tokens carry no sequence_id has none.
  def alter(context):
    context.nonpadding = None

  with pytest.raises(AttributeError, match="'NoneType' object has no attrib"):
    run(changed(mtf_layer(name, num_experts=2), alter), [1, 0], [1, 2],
        name=name)
  options = dict(num_experts=2, router_z_coef=1.0)
  mine = run(changed(our_layer(router(Argmax()), **options), alter), [1, 0],
             [1, 2])
  same = run(our_layer(router(Argmax()), **options), [1, 0], [1, 2])
  assert mine["y"].any()
  np.testing.assert_array_equal(mine["y"], same["y"])


@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_documented_difference_top_n_second_place_loss_fails(
    experts_per_token):
  with pytest.raises(IndexError):
    run(mtf_layer("top_n", num_experts=3, use_second_place_loss=True,
                  top_n_num_experts_per_token=experts_per_token),
        [1, 0, 0], [1, 2], name="top_n")


def test_documented_difference_top_n_second_place_loss_is_of_the_third():
  # x = 1, W_r = log (.5, .3, .2). Of first choices 3 * .5 = 1.5. Of second
  # ones, if f and P were theirs, 3 * .3 / (.3 + .2) = 1.8, times 1/2 2.4 in
  # all, as with top_2 and ours. With 3 choices, which is the default, f counts
  # the third and P is of what is left after two, which is all: 3, 3.0 in all.
  kernel, x = np.log([.5, .3, .2]), [1] * 4
  options = dict(num_experts=3, use_second_place_loss=True)
  losses = [run(mtf_layer(name, **options), kernel, x, name=name)["loss"]
            for name in ("top_n", "top_2")]
  losses.append(run(our_layer(
      Top2Router(Argmax(), second_place_weight=.5), num_experts=3), kernel,
                    x)["loss"])
  np.testing.assert_allclose(losses, [3.0, 2.4, 2.4], atol=TOLERANCE)


def test_documented_difference_moe2d_fails():
  with pytest.raises(AttributeError, match="moe_min_expert_capacity"):
    run(moe.MoE2D(expert_x=2, expert_y=2, hidden_size=1, group_size=8), [1, 0],
        [1, 2])


@pytest.mark.parametrize("options, works", [
    ({}, False), ({"shared_kv": True}, True),
    ({"shared_kv": True, "z_loss": .1}, True)])
def test_documented_difference_experts_attention_fails_by_default(
    options, works):
  # The layer insists on shared_kv, which is off by default. That given, it
  # works in this release.
  layer = transformer_layers.ExpertsSelfAttention(
      num_heads=2, key_value_size=3, num_experts=2, hidden_size=8,
      group_size=8, **options)
  stack = transformer.LayerStack(
      [layer], sublayers_initial=[], sublayers_final=[],
      sublayers_per_layer=[transformer.sublayer_call_layer])
  model = transformer.Unitransformer(
      stack, d_model=MODEL, input_vocab_size=16, output_vocab_size=16,
      autoregressive=True, max_length=4, layout="", mesh_shape="")
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  tokens = mtf.ones(
      mesh, mtf.convert_to_shape("batch:2,length:4"), dtype=tf.int32)

  def loss():
    return model.call_simple(
        tokens, tokens, True, mode="train", sequence_id=tokens,
        variable_dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32))

  if works:
    loss()
    lower(mesh)
    names = {v.name.split("/")[-2] for v in mesh.graph.trainable_variables}
    assert names >= {"switch_gating", "wi", "q_wo", "k_wo"}
  else:
    with pytest.raises(ValueError, match="shared_kv must be True"):
      loss()
