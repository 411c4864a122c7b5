import functools
import math
import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import BuiltLayer

from switch_mtf.dims import expert_capacity
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import (
  InputDropout,
  InputJitter,
  SampleSoftmax,
)
from switch_mtf.layers.routers import (
  ExpertChoiceRouter,
  NoTokenLeftBehindRouter,
  RandomSecond,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

TOLERANCE = 1e-5
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}
EXPERTS, HIDDEN, MODEL, GROUP = 4, 12, 6, 4
CAPACITY = expert_capacity(GROUP, EXPERTS, 1.25, 1)

# 32 tokens in 8 groups; with expert replication 4 groups on each of 2 replicas.
PLAIN = f"batch:8,length:4,d_model:{MODEL}"
REPLICAS = f"outer_batch:2,batch:4,length:4,d_model:{MODEL}"

# mesh, layout, shape of x.
LAYOUTS = {
    "data": ("a:4;b:1", "batch:a", PLAIN),
    "experts": ("a:4;b:1", "experts:a", PLAIN),
    "model": ("a:4;b:1", "d_ff:a", PLAIN),
    "data and experts": ("a:4;b:1", "batch:a;experts:a", PLAIN),
    "data, experts, model": ("a:2;b:2", "batch:a;experts:a;d_ff:b", PLAIN),
    "the same, axes swapped": ("a:2;b:2", "batch:b;experts:b;d_ff:a", PLAIN),
    "data, model": ("a:2;b:2", "batch:a;d_ff:b", PLAIN),
    "data apart from experts": ("a:2;b:2", "batch:a;experts:b", PLAIN),
    "replicas": ("o:2;a:2", "outer_batch:o;batch:a;experts:a", REPLICAS),
    # As in decoding, where all replicas compute the same tokens.
    "replicas, one batch": (
        "o:2;a:2", "outer_batch:o;batch:a;experts:a", PLAIN),
    "replicas, data": ("o:2;a:2", "outer_batch:o;batch:a", REPLICAS),
    "replicas, model": ("o:2;a:2", "outer_batch:o;d_ff:a", REPLICAS),
    "replicas, data, experts, model": (
        "o:2;a:2;b:2", "outer_batch:o;batch:a;experts:a;d_ff:b", REPLICAS),
    "data and experts, 8 ways": ("a:4;b:2", "batch:a;experts:a;d_ff:b", PLAIN),
}

# Where the groups and the experts are split over the same axis: that axis, and
# how many processors hold a copy of each slot.
ALL_TO_ALL = {
    "data and experts": (0, 1),
    "data, experts, model": (0, 2),
    "the same, axes swapped": (1, 2),
    "replicas": (1, 1),
    "replicas, one batch": (1, 2),
    "replicas, data, experts, model": (1, 2),
    "data and experts, 8 ways": (0, 2),
}

# Everything that a layer may be made of, in as few layers as it takes.
MECHANISMS = {
    "switch": dict(dropout_rate=.3, router=lambda: SwitchRouter(
        InputJitter(.2))),
    "prioritized, sampled, z-loss": dict(
        router_z_coef=.1, router=lambda: SwitchRouter(
            SampleSoftmax(2.0), prioritized=True)),
    "top 2, GEGLU": dict(
        activation=["gelu", "linear"], router=lambda: Top2Router(
            InputDropout(.2), prioritized=True, second_train=RandomSecond(.6),
            second_place_weight=.5)),
    "no token left behind": dict(
        capacity_factor_train=.75, router=lambda: NoTokenLeftBehindRouter()),
    "dropless, linear experts": dict(
        capacity_factor_train=None, hidden_size=None,
        router=lambda: Top2Router()),
    "expert choice": dict(router=lambda: ExpertChoiceRouter()),
    "expert choice over tokens": dict(
        router=lambda: ExpertChoiceRouter(softmax_over_tokens=True)),
}


def make_layer(mechanism, dispatcher):
  options = dict(
      num_experts=EXPERTS, hidden_size=HIDDEN, group_size=GROUP,
      capacity_factor_train=1.25, capacity_factor_eval=1.25, min_capacity=1,
      load_balancing_coef=1.0, dispatcher=DISPATCHERS[dispatcher]())
  options |= MECHANISMS[mechanism]
  return SwitchFFN(**{**options, "router": options["router"]()})


# What was counted in each layer that was built; the layers themselves, with a
# session each, would take gigabytes.
COUNTED = {}


@functools.lru_cache(maxsize=4)
def build(dispatcher, mesh_shape="", layout="", shape=PLAIN, mode="train",
          gradients=True, mechanism="switch"):
  layer = BuiltLayer(
      make_layer(mechanism, dispatcher), shape, mode=mode,
      mesh_shape=mesh_shape, layout=layout, gradients=gradients)
  COUNTED[dispatcher, mesh_shape, layout, shape, mode, mechanism] = (
      types.SimpleNamespace(counters=layer.counters))
  return layer


def counted(dispatcher, mesh_shape, layout, shape, mode="train"):
  """As much of a layer as counts its communication."""
  key = dispatcher, mesh_shape, layout, shape, mode, "switch"
  if key not in COUNTED:
    build(dispatcher, mesh_shape, layout, shape, mode, mode == "train")
  return COUNTED[key]


@functools.cache
def run(dispatcher, mesh_shape, layout, shape, mechanism="switch"):
  """The results for the same tokens, some of them padding, at step 3."""
  layer = build(dispatcher, mesh_shape, layout, shape, mechanism=mechanism)
  return layer(*draw(layer, shape), step=3)


def draw(layer, shape):
  """Weights, tokens, padding and output gradients for a layer."""
  rng = np.random.default_rng(1)
  size = mtf.convert_to_shape(shape).to_integer_list
  x, dy = rng.normal(size=[2, *size])
  real = rng.uniform(size=size[:-1]) < .8
  real.reshape(-1, GROUP)[5] = False
  weights = {
      name: rng.normal(size=v.shape.to_integer_list) / v.shape.dims[-2].size**.5
      for name, v in layer.variables.items()}
  weights |= {name: w * MODEL**.5 for name, w in weights.items()
              if name.endswith("router/kernel")}
  return weights, x, real, dy


def check_equal(found, right):
  assert set(found) == set(right)
  for name in found:
    np.testing.assert_allclose(
        found[name].reshape(right[name].shape), right[name], atol=TOLERANCE,
        rtol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_numbers_as_on_one_processor(name, dispatcher):
  # Training: outputs, loss, metrics, every gradient, with jitter and expert
  # dropout. What is right is what one processor and one-hot masks find.
  mesh_shape, layout, shape = LAYOUTS[name]
  check_equal(run(dispatcher, mesh_shape, layout, shape),
              run("einsum", "", "", shape))


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m != "switch"])
@pytest.mark.parametrize("name", [
    "data", "experts", "model", "data and experts", "data, experts, model",
    "replicas", "replicas, data, experts, model", "data and experts, 8 ways"])
def test_every_mechanism_on_every_strategy(name, mechanism):
  mesh_shape, layout, shape = LAYOUTS[name]
  check_equal(run("gather", mesh_shape, layout, shape, mechanism),
              run("einsum", "", "", shape, mechanism))


@pytest.mark.parametrize("name", [
    "data", "experts", "model", "data and experts", "data, experts, model",
    "data apart from experts", "data, model", "data and experts, 8 ways"])
def test_switch_attention(name):
  # The heads are split where d_ff is: "model".
  mesh_shape, layout, shape = LAYOUTS[name]
  layout = layout.replace("d_ff:", "heads:")
  check_equal(run_attention(mesh_shape, layout), run_attention("", ""))


@functools.cache
def run_attention(mesh_shape, layout):
  layer = BuiltLayer(
      SwitchSelfAttention(
          num_heads=4, key_value_size=3, relative_attention_type="bias",
          relative_attention_num_buckets=4,
          projection=lambda: make_layer("dropless, linear experts", "gather")),
      PLAIN, mesh_shape=mesh_shape, layout=layout, gradients=True)
  return layer(*draw(layer, PLAIN), step=3)


def test_replication_changes_nothing():
  # 2 replicas of the experts with 4 groups each, or 8 groups on one.
  check_equal(run("gather", "", "", REPLICAS), run("gather", "", "", PLAIN))


def test_something_is_tested():
  # Tokens are dropped, there is padding, and noise: another step differs.
  for mechanism in MECHANISMS:
    found = run("einsum", "", "", PLAIN, mechanism)
    dropless = "dropless" in mechanism
    assert dropless or .02 < found["dropped_fraction"] < .95, mechanism
    # Experts that choose need no loss.
    may_be_0 = ["dead_experts"]
    if "expert choice" in mechanism:
      may_be_0.append("loss")
    assert all(np.abs(v).max() > 1e-2 for name, v in found.items()
               if name not in may_be_0 and "dropped" not in name), mechanism
    layer = build("einsum", "", "", PLAIN, mechanism=mechanism)
    other = layer(*draw(layer, PLAIN), step=4)
    assert (other["y"] != found["y"]).any()


# Communication.


def expected_collectives(name):
  """Paper, section 5: what a strategy sums or moves, forward and backward.

  (kind, mesh axes) to the number of elements a processor holds, for each.
  """
  mesh_shape, layout, _ = LAYOUTS[name]
  rules = dict(rule.split(":") for rule in layout.split(";"))
  axes = {d.name: i for i, d in enumerate(
      mtf.convert_to_shape(mesh_shape).dims)}
  ways = {d.name: d.size for d in mtf.convert_to_shape(mesh_shape).dims}
  of = {d: ways[rules[d]] for d in rules}
  groups = 8 // of.get("batch", 1) // of.get("outer_batch", 1)
  slots = EXPERTS * CAPACITY * groups * MODEL
  kernel = EXPERTS * MODEL * HIDDEN // of.get("d_ff", 1)
  replicas = {axes[rules[d]] for d in ("outer_batch", "batch") if d in rules}
  forward, backward = [], []
  if "d_ff" in rules:  # h W_out sums over d_ff, its gradient too
    model = [("allreduce", (axes[rules["d_ff"]],), slots)]
    forward, backward = forward + model, backward + model
  if rules.get("experts") and rules["experts"] == rules.get("batch"):
    move = [("alltoall", (axes[rules["experts"]],), slots)] * 2
    forward, backward = forward + move, backward + move
    kernel //= of["experts"]
    copies = replicas - {axes[rules["experts"]]}
  else:
    copies = replicas
  if copies:  # gradients of weights that several processors hold
    backward += [("allreduce", tuple(sorted(copies)), kernel)] * 2
  if replicas:
    backward += [("allreduce", tuple(sorted(replicas)), MODEL * EXPERTS)]
  return forward, backward


def found_collectives(layer, processors):
  """The same of a layer, without the sums of losses and metrics."""
  found = []
  for name, size in layer.counters:
    kind, _, rest = name.partition("/")
    axes, _, op = rest.rpartition("/")
    if kind in ("allreduce", "alltoall", "allconcat", "shift"):
      if op == "reduce_op":
        assert size <= EXPERTS * processors
        continue
      axes = tuple(sorted(int(a) for a in axes.strip("[]").split(",")))
      found.append((kind, axes, size // processors))
  return sorted(found)


@pytest.mark.parametrize("name", [
    "data", "model", "data, model", "data and experts", "data, experts, model",
    "replicas", "replicas, data", "replicas, model",
    "replicas, data, experts, model", "data and experts, 8 ways"])
def test_collectives_are_those_of_the_paper(name):
  mesh_shape, layout, shape = LAYOUTS[name]
  processors = mtf.convert_to_shape(mesh_shape).size
  forward, backward = expected_collectives(name)
  assert found_collectives(
      counted("gather", mesh_shape, layout, shape, "eval"),
      processors) == sorted(forward)
  assert found_collectives(
      counted("gather", mesh_shape, layout, shape), processors) == sorted(
          forward + backward)


def collectives(layer):
  """Those that move slots or tokens; sums over a mesh axis are all-reduces."""
  return [(name, size) for name, size in layer.counters
          if name.startswith(("alltoall", "allconcat", "shift"))]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", ALL_TO_ALL)
def test_two_all_to_alls_a_forward_pass(name, dispatcher):
  # Upstream's ReshapeOperation.lower counts one all-to-all as
  # mesh_impl.laid_out_size(old shape): the size of a slice times the number of
  # processors. The slots E C M of all groups are split over the axes of the
  # groups (and of outer_batch), and every processor along another axis holds a
  # copy: E C M * groups * copies.
  mesh_shape, layout, shape = LAYOUTS[name]
  axis, copies = ALL_TO_ALL[name]
  layer = counted(dispatcher, mesh_shape, layout, shape, "eval")
  groups = 8  # 32 tokens / 4, replicas included
  size = EXPERTS * CAPACITY * MODEL * groups * copies
  assert collectives(layer) == [(f"alltoall/{axis}/reshape_op", size)] * 2


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_two_more_in_the_backward_pass(dispatcher):
  # The gradient of an all-to-all is one of the same size, back.
  layer = counted(dispatcher, *LAYOUTS["data and experts"])
  size = EXPERTS * CAPACITY * MODEL * 8
  assert collectives(layer) == [("alltoall/0/reshape_op", size)] * 4


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ALL_TO_ALL])
def test_no_all_to_all_otherwise(name, dispatcher):
  layer = counted(dispatcher, *LAYOUTS[name])
  assert not [c for c in collectives(layer) if c[0].startswith("alltoall")]


@pytest.mark.parametrize("name", [
    "data", "model", "data, model", "replicas, data", "replicas, model"])
def test_no_communication_of_tokens_where_experts_are_whole(name):
  # Each processor has its groups and all experts (or a part of each).
  assert collectives(counted("gather", *LAYOUTS[name])) == []


@pytest.mark.parametrize("name", [n for n in LAYOUTS if "model" in n])
def test_hidden_units_are_split(name):
  # Expert matmuls [E, X, M] x [E, M, F] are counted over all processors, each
  # as large as all its dimensions: E C groups M F where everything is split,
  # times the copies. Were d_ff not split, "model" would count 4 times that. No
  # other product has as many: the next are 32 M E = 768, times the copies.
  mesh_shape, layout, shape = LAYOUTS[name]
  layer = counted("gather", mesh_shape, layout, shape)
  rules = dict(rule.split(":") for rule in layout.split(";"))
  ways = {a: mtf.convert_to_shape(mesh_shape).get_dim_by_name(a).size
          for a in mesh_shape.replace(";", ":").split(":")[::2]}
  split = {rules[d] for d in ("experts", "d_ff", "outer_batch", "batch")
           if d in rules}
  copies = math.prod(ways[a] for a in ways if a not in split)
  product = EXPERTS * CAPACITY * 8 * MODEL * HIDDEN
  # Two matmuls forward, two for each backward.
  products = [n for k, n in layer.counters if k == "einsum"]
  assert products.count(product * copies) == 6
