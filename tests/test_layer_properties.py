"""What holds for a layer with any router, whatever it is fed."""

import functools

import numpy as np
import pytest
from helpers.graphs import BuiltLayer, Watched, random_weights
from helpers.many_routers import (
  CHOSEN_BY_TOKENS,
  DIFFERENT,
  ROUTERS,
  apart,
  repeatedly,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.switch_ffn import SwitchFFN

TOLERANCE = 1e-5
MODEL, EXPERTS, GROUPS, TOKENS = 5, 4, 3, 8
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}


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
    none = (found["seen_slot"][0] == TOKENS // EXPERTS).all(axis=-1)
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
    for key in clean.keys() - {"seen_expert"}:  # padding asks some expert
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
    assert ((found["seen_slot"][0] < TOKENS).any(axis=-1) == real).all()
    assert (found["y"][real] != 0).any(axis=-1).all()

  check()
