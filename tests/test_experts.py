"""Experts: few tokens by the chosen experts only, against slots."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import BuiltLayer

from switch_mtf.layers import dispatch, experts, switch_ffn
from switch_mtf.layers.routers import NoTokenLeftBehindRouter, Top2Router
from switch_mtf.layers.routing import SwitchRouter

MODEL, HIDDEN, EXPERTS = 6, 8, 4
ROUTERS = {
    "switch": SwitchRouter,
    "switch, prioritized": lambda: SwitchRouter(prioritized=True),
    "top 2": Top2Router,
    "no token left behind": lambda: NoTokenLeftBehindRouter(rounds=3),
}
EXPERT_KINDS = {
    "relu": {"activation": ["relu"]},
    "geglu": {"activation": ["gelu", "linear"]},
    "one, linear": {"activation": "linear"},
    "no hidden units": {"hidden_size": None},
}


@pytest.fixture
def uses(monkeypatch):
  """Counts how often only the chosen experts' kernels are read, in a list."""
  count, function = [0], experts._apply_chosen

  def apply_chosen(*args, **kwargs):
    count[0] += 1
    return function(*args, **kwargs)

  monkeypatch.setattr(experts, "_apply_chosen", apply_chosen)
  return count


def build(shape, *, router=SwitchRouter, mode="incremental", mesh_shape="",
          layout="", **options):
  layer = switch_ffn.SwitchFFN(**{
      "num_experts": EXPERTS, "hidden_size": HIDDEN, "min_capacity": 1,
      "router": router(), **options})
  return BuiltLayer(layer, shape, mode=mode, mesh_shape=mesh_shape,
                    layout=layout)


def random_inputs(layer, shape, seed=0):
  rng = np.random.default_rng(seed)
  weights = {name: rng.normal(size=v.shape.to_integer_list).astype(np.float32)
             for name, v in layer.variables.items()}
  return weights, rng.normal(
      size=mtf.convert_to_shape(shape).to_integer_list).astype(np.float32)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_same_as_slots(router, kind, uses, monkeypatch):
  shape = f"outer_batch:2,batch:3,d_model:{MODEL}"
  options = {"router": ROUTERS[router], **EXPERT_KINDS[kind]}
  chosen = build(shape, **options)
  assert uses == [1]
  monkeypatch.setattr(dispatch, "FEW_CHOICES", 0)
  slots = build(shape, **options)
  assert uses == [1]
  names, expected = ({
      name: v.shape.to_integer_list for name, v in layer.variables.items()}
      for layer in (chosen, slots))
  assert names == expected
  weights, x = random_inputs(chosen, shape)
  real = np.ones(x.shape[:-1])
  for padding in ([], [1], [0, 2], range(real.size)):
    real.flat[list(padding)] = 0
    found, expected = chosen(weights, x, real), slots(weights, x, real)
    assert set(found) == set(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(
          found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert (found["y"][real == 0] == 0).all()
    assert (found["y"][real == 1] != 0).any(axis=-1).all()


def test_by_hand(uses):
  # Two experts, two tokens: the first is 0 and doubles, the second is 1 and
  # triples; x[0] chooses 0 and x[1] chooses 1, each with e / (e + 1/e).
  layer = build("batch:2,d_model:2", num_experts=2, hidden_size=None)
  y = layer({"router/kernel": np.float32([[1, -1], [-1, 1]]),
             "wo/kernel": np.float32([np.eye(2) * 2, np.eye(2) * 3])},
            np.float32([[1, 0], [0, 1]]))["y"]
  weight = np.e / (np.e + 1 / np.e)
  np.testing.assert_allclose(
      y, [[2 * weight, 0], [0, 3 * weight]], rtol=1e-5)
  assert uses == [1]


@pytest.mark.parametrize("mesh", [
    {"mesh_shape": "a:2", "layout": "experts:a"},
    {"mesh_shape": "a:2", "layout": "batch:a"},
    {"mesh_shape": "a:2", "layout": "batch:a;experts:a"},
    {"mesh_shape": "a:2", "layout": "d_ff:a"}])
@pytest.mark.parametrize("router", [SwitchRouter, Top2Router])
def test_slots_on_a_mesh(mesh, router, uses):
  shape = f"batch:4,d_model:{MODEL}"
  alone = build(shape, router=router)
  assert uses == [1]
  split = build(shape, router=router, **mesh)
  assert uses == [1]
  weights, x = random_inputs(alone, shape)
  np.testing.assert_allclose(
      split(weights, x)["y"], alone(weights, x)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["batch:a", "experts:a", "d_ff:a"])
def test_an_axis_of_one_processor_splits_nothing(layout, uses):
  shape = f"batch:4,d_model:{MODEL}"
  alone, named = build(shape), build(shape, mesh_shape="a:1", layout=layout)
  assert uses == [2]
  weights, x = random_inputs(alone, shape)
  np.testing.assert_allclose(
      named(weights, x)["y"], alone(weights, x)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router,tokens,expected", [
    (SwitchRouter, 32, 1), (SwitchRouter, 33, 0), (Top2Router, 16, 1),
    (Top2Router, 17, 0)])
def test_only_where_choices_are_few(router, tokens, expected, uses):
  build(f"batch:{tokens},d_model:{MODEL}", router=router, group_size=64)
  assert uses == [expected]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_only_when_decoding(mode, uses):
  build(f"batch:2,d_model:{MODEL}", mode=mode)
  assert uses == [0]


@pytest.mark.parametrize("mode", ["infer", "score"])
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_many_tokens_of_which_none_is_dropped(
    kind, router, mode, uses, monkeypatch):
  # Against slots for all 40 tokens at each of 9 experts, some without a token.
  monkeypatch.setattr(dispatch, "drop_nothing", lambda: True)
  shape = f"batch:8,length:5,d_model:{MODEL}"
  options = {"router": ROUTERS[router], "num_experts": 9, "mode": mode,
             "capacity_factor_eval": .1, **EXPERT_KINDS[kind]}
  chosen = build(shape, **options)
  assert uses == [1]
  slots = build(shape, dispatcher=dispatch.GatherDispatcher(), **options)
  assert uses == [1]
  weights, x = random_inputs(chosen, shape)
  weights["router/kernel"][:, :2] = weights["router/kernel"][:, 2:3]
  real = np.ones(x.shape[:-1])
  real[3, 2:] = 0
  found, expected = chosen(weights, x, real), slots(weights, x, real)
  np.testing.assert_allclose(
      found["y"], expected["y"], rtol=1e-5, atol=1e-5)
  assert (found["y"][real == 0] == 0).all()
  assert (found["y"][real == 1] != 0).any(axis=-1).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_training_and_evaluation_keep_their_capacity(mode, uses, monkeypatch):
  shape = f"batch:8,length:5,d_model:{MODEL}"
  options = {"mode": mode, "capacity_factor_eval": .2,
             "capacity_factor_train": .2}
  before = build(shape, **options)
  monkeypatch.setattr(dispatch, "drop_nothing", lambda: True)
  after = build(shape, **options)
  assert uses == [0]
  weights, x = random_inputs(before, shape)
  y = after(weights, x)["y"]
  np.testing.assert_array_equal(y, before(weights, x)["y"])
  assert (y == 0).all(axis=-1).any()  # a dropped token


@pytest.mark.parametrize("dispatcher", [
    dispatch.EinsumDispatcher, dispatch.GatherDispatcher])
def test_a_dispatcher_that_is_asked_for_fills_slots(dispatcher, uses):
  shape = f"batch:4,d_model:{MODEL}"
  asked = build(shape, dispatcher=dispatcher())
  assert uses == [0]
  alone = build(shape)
  assert uses == [1]
  weights, x = random_inputs(alone, shape)
  np.testing.assert_allclose(
      asked(weights, x)["y"], alone(weights, x)["y"], rtol=1e-5, atol=1e-5)
