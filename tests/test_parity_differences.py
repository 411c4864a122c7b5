"""Where we mean to differ from mesh_tensorflow's MoE1D, and what it gives."""

import functools
import math
import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import BuiltLayer, lower
from helpers.parity import MODEL, TOLERANCE, gating, renamed
from mesh_tensorflow.transformer import moe, transformer, transformer_layers
from mesh_tensorflow.transformer.moe import MoE1D

from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routers import (
  AlwaysSecond,
  ExpertChoiceRouter,
  NoTokenLeftBehindRouter,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

# Layers by hand: d_model 1, one hidden unit, every
# expert max(x, 0), so that y is x times the weights.


def changed(layer, change):
  """The layer, with something done to its context before it is called."""
  def call(context, x):
    change(context)
    return layer.call(context, x)

  return types.SimpleNamespace(call=call)


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
  return built(renamed(weights, gating(name)) if name else weights,
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
