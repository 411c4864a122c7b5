"""What holds for every router, whatever it is fed."""

import dataclasses
import functools

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, lower
from helpers.many_routers import (
  CHOSEN_BY_TOKENS,
  DIFFERENT,
  ROUTERS,
  THRESHOLD,
  apart,
  repeatedly,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from switch_mtf.dims import MoeDims
from switch_mtf.layers import dispatch
from switch_mtf.layers.losses import load_balancing_loss

TOLERANCE = 1e-5
# outer_batch, batch (each a group), length, experts, capacity.
SIZES = [(1, 2, 7, 3, 2), (2, 1, 4, 5, 1), (1, 2, 5, 1, 2), (1, 1, 6, 2, 6)]
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
      _, choice_OGEC = dispatch.indices(found, dims)
      lowering = lower(mesh)
      self._outputs = {
          name: lowering.export_to_tf_tensor(t) for name, t in {
              "expert": found.expert_OGSK, "slot": found.slot_OGSK,
              "weight": found.weight_OGSK, "choice": choice_OGEC,
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
