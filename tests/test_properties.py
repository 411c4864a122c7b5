"""What holds for every router, whatever it is fed."""

import dataclasses
import functools

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import BuiltLayer, constant, evaluate, lower, random_weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from switch_mtf.dims import MoeDims
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.losses import load_balancing_loss
from switch_mtf.layers.routers import (
  AlwaysSecond,
  ExpertChoiceRouter,
  NeverSecond,
  NoTokenLeftBehindRouter,
  RandomSecond,
  SecondAboveThreshold,
  Top2Router,
)
from switch_mtf.layers.routing import Router, SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

TOLERANCE = 1e-5
# Two numbers that a router compares are further apart than this where a test
# needs the same answer from two computations that round differently.
MARGIN = 1e-4
THRESHOLD = .4
POLICIES = {
    "all": AlwaysSecond, "none": NeverSecond,
    "above": functools.partial(SecondAboveThreshold, THRESHOLD),
    "random": functools.partial(RandomSecond, .6)}


def routers():
  """Name to a function that makes the router; no noise from exploration."""
  quiet = {"exploration": Argmax()}
  for name, prioritized in (("", False), (", prioritized", True)):
    yield f"switch{name}", functools.partial(
        SwitchRouter, prioritized=prioritized, **quiet)
    for policy, make in POLICIES.items():
      yield f"top 2, {policy}{name}", functools.partial(
          Top2Router, prioritized=prioritized, second_train=make(),
          second_eval=make(), **quiet)
  for rounds in (1, 2, 3):
    yield f"left behind, {rounds}", functools.partial(
        NoTokenLeftBehindRouter, rounds=rounds, **quiet)
  yield "expert choice", functools.partial(ExpertChoiceRouter, **quiet)
  yield "expert choice, over tokens", functools.partial(
      ExpertChoiceRouter, softmax_over_tokens=True, **quiet)


ROUTERS = dict(routers())
CHOSEN_BY_TOKENS = [name for name in ROUTERS if "expert" not in name]

# outer_batch, batch (each a group), length, experts, capacity.
SIZES = [(1, 2, 7, 3, 2), (2, 1, 4, 5, 1), (1, 2, 5, 1, 2), (1, 1, 6, 2, 6)]
# Each does in its own way what the others do; for all sizes and dispatchers.
DIFFERENT = [
    "switch", "switch, prioritized", "top 2, all", "top 2, random, prioritized",
    "left behind, 3", "expert choice", "expert choice, over tokens"]


def repeatedly(count):
  """Settings: the same `count` draws each time, however long they take."""
  return settings(max_examples=count, deadline=None, derandomize=True)


def new_session():
  # Graphs this small take longer to optimise than to run.
  config = tf.ConfigProto(
      intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return tf.Session(config=config)


class BuiltRouter:
  """A router in a graph of its own, built once, run for many logits.

  A call takes logits [O, G, S, E] and 1 for real tokens [O, G, S] and returns a
  dict of the routing's fields (expert, slot, weight, choice), losses and
  metrics.
  """

  def __init__(self, name, size):
    outer, groups, tokens, experts, self.capacity = size
    self.shape = [outer, groups, tokens, experts]
    router = ROUTERS[name]()
    self.choices = router.num_choices(experts)
    dims = MoeDims.create(
        mtf.convert_to_shape(
            f"outer_batch:{outer},batch:{groups},length:{tokens},d_model:3"),
        num_experts=experts, hidden_size=1, group_size=tokens,
        capacity_factor=1.0, min_capacity=1, num_choices=self.choices)
    dims = dataclasses.replace(
        dims, capacity_dim=mtf.Dimension("expert_capacity", self.capacity))
    with tf.Graph().as_default():
      mesh = mtf.Mesh(mtf.Graph(), "mesh")
      self._inputs = [tf.placeholder(tf.float32, self.shape),
                      tf.placeholder(tf.float32, self.shape[:-1])]
      logits, real = (
          mtf.import_tf_tensor(mesh, placeholder, mtf.Shape(d))
          for placeholder, d in zip(
              self._inputs, (dims.OGSE, dims.OGS), strict=True))
      found = router.route(logits, real, dims, train=True)
      lowering = lower(mesh)
      self._outputs = {
          name: lowering.export_to_tf_tensor(t) for name, t in {
              "expert": found.expert_OGSK, "slot": found.slot_OGSK,
              "weight": found.weight_OGSK, "choice": found.choice_OGEC,
              **found.losses, **found.metrics}.items()}
      self._session = new_session()

  def __call__(self, logits, real):
    return self._session.run(
        self._outputs, dict(zip(self._inputs, (logits, real), strict=True)))


built_router = functools.cache(BuiltRouter)


def batches(shape, *, with_padding=True):
  """Logits that often tie, and padding."""
  logits = arrays(np.int8, shape, elements=st.integers(-3, 3)).map(
      lambda n: n * np.float32(.75))
  real = arrays(bool, shape[:-1]) if with_padding else st.just(
      np.ones(shape[:-1], bool))
  return st.tuples(logits, real)


# Slots.


def check_slots(expert, slot, weight, choice, real, capacity):
  """One group: expert, slot, weight [S, K], choice [E, C], real [S].

  Returns for each token whether it got a slot.
  """
  tokens, choices = slot.shape
  holders = np.full(choice.shape, tokens * choices)
  for s, k in np.argwhere(slot < capacity):
    assert real[s], "padding has a slot"
    assert 0 <= slot[s, k]
    place = expert[s, k], slot[s, k]
    assert holders[place] == tokens * choices, "a slot holds two choices"
    holders[place] = s * choices + k
  np.testing.assert_array_equal(choice, holders, "not the inverse")
  kept = slot < capacity
  assert ((weight > 0) == kept).all()
  assert (weight <= 1 + TOLERANCE).all()
  for s in range(tokens):
    assert len(set(expert[s])) == choices, "one expert, two choices"
  # No hole: the slots that are filled come first.
  filled = choice < tokens * choices
  assert (filled == np.sort(filled)[:, ::-1]).all()
  return kept.any(axis=-1)


def asked(name, logits, slot, capacity):
  """Which choices of real tokens did ask for a slot; [S, K]."""
  if "none" in name:
    return np.arange(slot.shape[1]) == np.zeros([len(slot), 1])
  if "random" in name:
    return (slot < capacity) | (np.arange(slot.shape[1]) == 0)
  if "above" in name and slot.shape[1] == 2:
    rest, best = np.sort(logits)[:, -2:].T
    gate = 1 / (1 + np.exp(best - rest))
    return np.stack([np.ones(len(slot)), gate > THRESHOLD], axis=-1) > 0
  if "left behind" in name:
    got = np.cumsum(slot < capacity, axis=-1) - (slot < capacity)
    return got == 0
  return np.ones(slot.shape, bool)


@pytest.mark.parametrize("name, size", [
    (name, size) for name in ROUTERS for size in SIZES
    if size == SIZES[0] or name in DIFFERENT])
def test_slots(name, size):
  run = built_router(name, size)

  @repeatedly(25)
  @given(batches(run.shape))
  def check(batch):
    logits, real = batch
    found = run(logits, real)
    kept = 0
    for g in np.ndindex(*run.shape[:2]):
      slot = found["slot"][g]
      got = check_slots(
          found["expert"][g], slot, found["weight"][g], found["choice"][g],
          real[g], run.capacity)
      kept += got.sum()
      if "left behind" in name:
        assert ((slot < run.capacity).sum(axis=-1) <= 1).all()
      # Who asked in vain asked an expert that is full.
      filled = (found["choice"][g] < slot.size).sum(axis=-1)
      vain = (asked(name, logits[g], slot, run.capacity)
              & (slot == run.capacity) & real[g][:, None])
      enough = np.minimum(run.capacity, real[g].sum())
      assert (filled[found["expert"][g][vain]] == enough).all()
    # Kept and dropped are the real tokens.
    total = real.sum()
    assert kept + found["dropped_fraction"] * total == pytest.approx(
        total, abs=1e-4)
    assert run.choices == found["slot"].shape[-1]
    assert found["router_z_loss"] >= 0
    assert found["dropped_fraction"] >= 0
    assert 0 <= found.get("load_balancing_loss", 0) <= run.shape[-1] * (
        1 + TOLERANCE)

  check()


@pytest.mark.parametrize("size", SIZES[:2])
def test_one_round_is_switch(size):
  one_round, switch = (
      built_router(name, size) for name in ("left behind, 1", "switch"))

  @repeatedly(25)
  @given(batches(switch.shape))
  def check(batch):
    right = switch(*batch)
    for name, value in one_round(*batch).items():
      np.testing.assert_array_equal(value, right[name], name)

  check()


@pytest.mark.parametrize("name", ["top 2, none", "top 2, none, prioritized"])
@pytest.mark.parametrize("size", SIZES[:1])
def test_never_second(name, size):
  # The first choices are those of Switch, and nothing else is kept.
  run = built_router(name, size)
  switch = built_router(name.replace("top 2, none", "switch"), size)

  @repeatedly(25)
  @given(batches(run.shape))
  def check(batch):
    found, right = run(*batch), switch(*batch)
    assert (found["slot"][..., 1:] == run.capacity).all()
    assert (found["weight"][..., 1:] == 0).all()
    for field in ("expert", "slot"):
      np.testing.assert_array_equal(
          found[field][..., :1], right[field], field)

  check()


# Losses.


@pytest.mark.parametrize("name", CHOSEN_BY_TOKENS)
def test_loss_where_probabilities_are_uniform(name):
  # P_i = 1/E: E * sum_i f_i / E = 1, whoever is chosen.
  run = built_router(name, SIZES[0])

  @repeatedly(15)
  @given(arrays(bool, run.shape[:-1]))
  def check(real):
    found = run(np.zeros(run.shape), real)
    assert found["load_balancing_loss"] == pytest.approx(
        1 if real.any() else 0, abs=TOLERANCE)
    # log(sum of 3 ones), squared.
    assert found["router_z_loss"] == pytest.approx(
        np.log(3)**2 if real.any() else 0, abs=TOLERANCE)

  check()


@pytest.mark.parametrize("name", CHOSEN_BY_TOKENS)
def test_loss_where_tokens_spread_evenly(name):
  # Each expert is first choice, and second, of 2 tokens of 6 and all are as
  # sure: f_i = P_i = 1/3. The seventh is padding.
  run = built_router(name, SIZES[0])

  @repeatedly(15)
  @given(st.permutations(range(7)), st.floats(.1, 20))
  def check(order, sure):
    first = sure * np.eye(3) + sure / 2 * np.roll(np.eye(3), 1, axis=1)
    logits = np.zeros(run.shape)
    logits[..., order, :] = first[np.arange(7) % 3]
    real = np.ones(run.shape[:-1])
    real[..., order[-1]] = 0
    assert run(logits, real)["load_balancing_loss"] == pytest.approx(
        1, abs=TOLERANCE)

  check()


@repeatedly(10)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_loss_of_any_choice_is_1_under_uniform_probabilities(chosen):
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    dims = MoeDims.create(
        mtf.convert_to_shape("batch:1,length:5,d_model:3"), num_experts=4,
        hidden_size=1, group_size=5, capacity_factor=1.0, min_capacity=1)
    loss = load_balancing_loss(
        constant(mesh, np.full([1, 1, 5, 4], .25, np.float32), dims.OGSE),
        constant(mesh, np.eye(4, dtype=np.float32)[None, None, chosen],
                 dims.OGSE),
        mtf.ones(mesh, mtf.Shape(dims.OGS)), dims)
    assert evaluate(lower(mesh), [loss]) == pytest.approx([1], abs=TOLERANCE)


# Permutations.


def apart(logits, real):
  """Whether all that a router compares differs by more than rounding.

  Logits [G, S, E], in float64.
  """
  for logits_g, real_g in zip(logits, real > 0, strict=True):
    logits_g = logits_g[real_g]
    probs = np.exp(logits_g - logits_g.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    log_probs = np.log(probs)
    best = np.sort(log_probs, axis=-1)[:, ::-1]
    compared = [*log_probs, *log_probs.T, *logits_g.T, best[:, 0]]
    if logits_g.shape[1] > 1:
      gate = 1 / (1 + np.exp(best[:, 0] - best[:, 1]))
      compared += [[g, THRESHOLD] for g in gate]
    if any((np.diff(np.sort(c)) < MARGIN).any() for c in compared):
      return False
  return True


@pytest.mark.parametrize("name", ROUTERS)
def test_permuting_experts_permutes_the_routing(name):
  run = built_router(name, SIZES[0])
  *shape, experts = run.shape

  @repeatedly(15)
  @given(st.integers(0, 2**31), arrays(bool, shape),
         st.permutations(range(experts)))
  def check(seed, real, order):
    logits = np.random.default_rng(seed).normal(size=run.shape)
    assume(apart(logits[0], real[0]))
    found, moved = run(logits, real), run(logits[..., order], real)
    # As tokens: the choices of ExpertChoice are numbered by expert.
    np.testing.assert_array_equal(
        moved["choice"] // run.choices,
        found["choice"][:, :, order] // run.choices)
    weights = [np.sort(r["weight"], axis=-1) for r in (found, moved)]
    np.testing.assert_allclose(*weights, atol=TOLERANCE)
    for key in ("expert_load", "expert_dropped_fraction", "expert_probability"):
      np.testing.assert_allclose(
          moved[key], found[key][order], atol=TOLERANCE, err_msg=key)
    for key in ("router_z_loss", "load_balancing_loss", "dropped_fraction",
                "dead_experts", "router_entropy"):
      assert moved.get(key) == pytest.approx(found.get(key), abs=TOLERANCE), key

  check()


# The layer.

MODEL, EXPERTS, GROUPS, TOKENS = 5, 4, 3, 8
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}


class Watched(Router):
  """A router that also hands out, as a metric, the slots."""

  def __init__(self, router):
    super().__init__(router.exploration)
    self._router = router
    self.num_choices = router.num_choices

  def assign(self, *args):
    raise AssertionError("the router's own is used")

  def __call__(self, x_OGSM, nonpadding_OGS, dims, context):  # noqa: N803
    routing = self._router(x_OGSM, nonpadding_OGS, dims, context)
    return dataclasses.replace(
        routing, metrics=routing.metrics | {"slot": routing.slot_OGSK})


@functools.cache
def built_layer(name, dispatcher="gather", factor=1.0):
  """Groups of 8 tokens, 4 experts with 2 slots each for a group."""
  layer = SwitchFFN(
      num_experts=EXPERTS, hidden_size=8, group_size=TOKENS, min_capacity=1,
      activation="tanh",  # never 0
      capacity_factor_train=factor, router=Watched(ROUTERS[name]()),
      router_z_coef=.1, dispatcher=DISPATCHERS[dispatcher]())
  return BuiltLayer(
      layer, f"batch:{GROUPS},length:{TOKENS},d_model:{MODEL}")


def draw(seed):
  """Weights, and tokens that are nowhere 0."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=[GROUPS, TOKENS, MODEL]).astype(np.float32)
  return random_weights(rng, model=MODEL, experts=EXPERTS), np.where(
      x == 0, 1, x)


seeds = st.integers(0, 2**31)
paddings = arrays(bool, [GROUPS, TOKENS], elements=st.integers(0, 3).map(bool))


@pytest.mark.parametrize("name, dispatcher", [
    *((name, "gather") for name in ROUTERS),
    *((name, "einsum") for name in DIFFERENT)])
def test_what_has_no_slot_comes_out_as_it_was(name, dispatcher):
  run = built_layer(name, dispatcher)
  dropped = 0

  @repeatedly(6)
  @given(seeds, paddings)
  def check(seed, real):
    nonlocal dropped
    weights, x = draw(seed)
    found = run(weights, x, real)
    none = (found["slot"][0] == TOKENS // EXPERTS).all(axis=-1)
    assert none[~real].all()
    dropped += (none & real).sum()
    assert (found["y"][none] == 0).all()
    assert (x + found["y"])[none].tobytes() == x[none].tobytes()
    assert (found["y"][~none] != 0).any(axis=-1).all()

  check()
  assert dropped > 0


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_is_invisible(name):
  run = built_layer(name)

  @repeatedly(6)
  @given(seeds, paddings, st.floats(-1e5, 1e5))
  def check(seed, real, anything):
    weights, x = draw(seed)
    clean = run(weights, np.where(real[..., None], x, 0), real)
    dirty = run(weights, np.where(real[..., None], x, anything * x), real)
    for key in clean:
      np.testing.assert_array_equal(dirty[key], clean[key], err_msg=key)

  check()


@pytest.mark.parametrize("name", ROUTERS)
def test_permuting_experts_changes_no_output(name):
  # Columns of the router and the experts' weights alike.
  run = built_layer(name)

  @repeatedly(6)
  @given(seeds, paddings, st.permutations(range(EXPERTS)))
  def check(seed, real, order):
    weights, x = draw(seed)
    assume(apart(x @ weights["router/kernel"].astype(float), real))
    moved = {key: value[order] for key, value in weights.items()}
    moved["router/kernel"] = weights["router/kernel"][:, order]
    found, right = run(moved, x, real), run(weights, x, real)
    for key in ("y", "loss"):
      np.testing.assert_allclose(
          found[key], right[key], atol=TOLERANCE, err_msg=key)

  check()


# RandomSecond draws by position, so that other tokens ask in another place.
@pytest.mark.parametrize("name", [n for n in ROUTERS if "random" not in n])
def test_permuting_groups_permutes_the_outputs(name):
  run = built_layer(name)

  @repeatedly(6)
  @given(seeds, paddings, st.permutations(range(GROUPS)))
  def check(seed, real, order):
    weights, x = draw(seed)
    assume(apart(x @ weights["router/kernel"].astype(float), real))
    found, right = run(weights, x[order], real[order]), run(weights, x, real)
    np.testing.assert_allclose(
        found["y"], right["y"][order], atol=TOLERANCE)
    assert found["loss"] == pytest.approx(right["loss"], abs=TOLERANCE)

  check()


@pytest.mark.parametrize("name", ROUTERS)
def test_groups_do_not_see_each_other(name):
  run = built_layer(name)

  @repeatedly(6)
  @given(seeds, seeds, paddings, paddings, st.integers(0, GROUPS - 1))
  def check(seed, other, real, other_real, group):
    weights, x = draw(seed)
    y = run(weights, x, real)["y"][group]
    _, other_x = draw(other)
    other_x[group], other_real[group] = x[group], real[group]
    np.testing.assert_array_equal(
        run(weights, other_x, other_real)["y"][group], y)

  check()


@pytest.mark.parametrize("name", CHOSEN_BY_TOKENS)
def test_without_a_capacity_factor_nothing_is_dropped(name):
  run = built_layer(name, factor=None)

  @repeatedly(6)
  @given(seeds, paddings, st.sampled_from([0, 1, 30]))
  def check(seed, real, sure):
    # 0: all tokens choose expert 0; 30: a softmax that is nearly one-hot.
    weights, x = draw(seed)
    weights["router/kernel"] *= sure
    found = run(weights, x, real)
    assert found["dropped_fraction"] == pytest.approx(0, abs=1e-6)
    assert (found["expert_dropped_fraction"] == 0).all()
    assert ((found["slot"][0] < TOKENS).any(axis=-1) == real).all()
    assert (found["y"][real] != 0).any(axis=-1).all()

  check()
