import functools
import zlib

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import oracle
from helpers.graphs import (
  HIDDEN,
  MODEL,
  SCOPE,
  BuiltLayer,
  constant,
  evaluate,
  lower,
  make_context,
  make_layer,
  random_weights,
)

from switch_mtf.layers import stateless
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher

TOLERANCE = 1e-5
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}


# Against the oracle. batch, length, experts, group_size, capacity factor,
# minimum, dispatcher.
CASES = {
    "plain": (4, 6, 4, 12, 1.25, 1, "gather"),
    "plain, einsum": (4, 6, 4, 12, 1.25, 1, "einsum"),
    "one group": (2, 5, 3, 1024, 1.0, 1, "gather"),
    "group is a sequence": (3, 4, 2, 4, 1.5, 1, "gather"),
    "group is half a sequence": (2, 8, 4, 4, 1.0, 1, "einsum"),
    "capacity 1": (3, 4, 4, 4, 1.0, 1, "gather"),
    "capacity 1, einsum": (3, 4, 4, 4, 1.0, 1, "einsum"),
    "minimum capacity": (2, 8, 8, 8, 1.0, 3, "gather"),
    "minimum above the group": (3, 2, 4, 2, 1.0, 4, "einsum"),
    "one expert": (2, 6, 1, 6, .5, 1, "gather"),
    "one expert, einsum": (2, 6, 1, 6, 1.0, 1, "einsum"),
    "more experts than tokens": (2, 3, 9, 3, 1.25, 1, "gather"),
    "more experts than tokens, einsum": (2, 3, 9, 3, 1.25, 1, "einsum"),
    "groups of one token": (2, 3, 4, 1, 1.25, 1, "gather"),
}
KINDS = ["no padding", "tail", "scattered", "a group", "all to one expert",
         "all to one, tail", "sure router", "all padding"]


@functools.cache
def built(name, mode, **changed):
  batch, length, experts, group, factor, minimum, dispatcher = CASES[name]
  return BuiltLayer(
      make_layer(experts, group, min_capacity=minimum,
                 capacity_factor_train=factor, capacity_factor_eval=factor,
                 dispatcher=DISPATCHERS[dispatcher](), **changed),
      f"batch:{batch},length:{length},d_model:{MODEL}", mode=mode)


def draw(name, kind):
  """Weights, tokens and padding of one case."""
  batch, length, experts, group, *_ = CASES[name]
  rng = np.random.default_rng(zlib.crc32(f"{name}/{kind}".encode()))
  weights = random_weights(rng, model=MODEL, hidden=HIDDEN, experts=experts)
  x = rng.normal(size=[batch, length, MODEL]).astype(np.float32)
  real = np.ones([batch, length])
  if "tail" in kind:
    real = np.arange(length) < rng.integers(1, length + 1, [batch, 1])
  elif kind == "scattered":
    real = rng.uniform(size=[batch, length]) < .6
    real[0, 0] = True
  elif kind == "a group":
    real.reshape(-1)[:min(group, batch * length - 1)] = 0
  elif kind == "all padding":
    real[:] = 0
  elif kind == "sure router":
    weights["router/kernel"] *= 10
  if "all to one" in kind:
    x = np.abs(x)
    weights["router/kernel"][:, -1] = 3 + weights["router/kernel"].max(axis=1)
  return weights, x, real.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name, kind):
  batch, length, experts, group, factor, minimum, _ = CASES[name]
  weights, x, real = draw(name, kind)
  group = min(group, batch * length)
  right = oracle.switch_layer(
      x.reshape(-1, group, MODEL).astype(np.float64),
      weights, oracle.capacity(group, experts, factor, minimum),
      real.reshape(-1, group))
  found = built(name, "eval")(weights, x, real)
  np.testing.assert_allclose(
      found["y"], right.y.reshape(x.shape), atol=TOLERANCE)
  # The layer adds its loss scaled by alpha, 0.01 as in section 2.2.
  assert found["loss"] == pytest.approx(1e-2 * right.loss, abs=1e-7)
  assert found["load_balancing_loss"] == pytest.approx(
      right.loss, abs=TOLERANCE)
  np.testing.assert_allclose(found["expert_load"], right.load, atol=TOLERANCE)
  assert found["router_entropy"] == pytest.approx(
      right.entropy, abs=TOLERANCE)
  # Where there is no real token, none was dropped.
  assert found["dropped_fraction"] == pytest.approx(
      right.dropped if real.any() else 0, abs=TOLERANCE)
  if "all to one" in kind:
    # Says that the case is what its name says; its loss is nearly E.
    assert found["expert_load"][-1] == pytest.approx(1)
  dropped = np.array([[slot is None for slot in r.slots] for r in right.routes])
  assert (found["y"].reshape(-1, group, MODEL)[dropped] == 0).all()


def test_the_cases_drop_tokens():
  # Half of the cases drop some, so that what is dropped is tested.
  count = 0
  for name, (batch, length, experts, group, factor, low, _) in CASES.items():
    group = min(group, batch * length)
    weights, x, _ = draw(name, "no padding")
    count += oracle.switch_layer(
        x.reshape(-1, group, MODEL), weights,
        oracle.capacity(group, experts, factor, low)).dropped > 0
  assert count >= len(CASES) / 2


def test_geglu_against_the_oracle():
  # Names: wi_0 and wi_1, as T5 1.1's DenseReluDense has them.
  layer = make_layer(4, 12, activation=["gelu", "linear"],
                     capacity_factor_eval=1.25)
  run = BuiltLayer(layer, f"batch:4,length:6,d_model:{MODEL}", mode="eval")
  weights, x, real = draw("plain", "tail")
  weights["wi_0/kernel"] = weights.pop("wi/kernel")
  weights["wi_1/kernel"] = weights["wi_0/kernel"][:, ::-1] + np.float32(.3)
  right = oracle.switch_layer(
      x.reshape(2, 12, MODEL).astype(np.float64), weights,
      oracle.capacity(12, 4, 1.25, 1), real.reshape(2, 12))
  np.testing.assert_allclose(
      run(weights, x, real)["y"], right.y.reshape(x.shape), atol=TOLERANCE)


# Gradients.


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_gradients(dispatcher):
  # Of sum(y * dy) + loss, alpha = 1, by finite differences of the oracle in
  # float64: the chosen experts and f_i do not change in so small a step, so
  # what is left is what Switch Transformer says is differentiable. 2 groups of
  # 5 tokens, 3 experts with 2 slots, 2 tokens of padding.
  rng = np.random.default_rng(3)
  weights = random_weights(rng, model=4, hidden=5, experts=3)
  x, dy = rng.normal(size=[2, 2, 5, 4]).astype(np.float32)
  real = np.ones([2, 5], np.float32)
  real[0, 4] = real[1, 1] = 0
  weights64 = {k: v.astype(np.float64) for k, v in weights.items()}
  x64 = x.astype(np.float64)
  assert oracle.distance_to_a_jump(x64.reshape(-1, 4), weights64) > 1e-3

  def objective():
    right = oracle.switch_layer(x64, weights64, 2, real)
    return (right.y * dy).sum() + right.loss

  assert oracle.switch_layer(x64, weights64, 2, real).dropped > 0
  layer = make_layer(3, 5, hidden_size=5, capacity_factor_train=1.25,
                     load_balancing_coef=1.0,
                     dispatcher=DISPATCHERS[dispatcher]())
  run = BuiltLayer(layer, "batch:2,length:5,d_model:4", gradients=True)
  found = run(weights, x, real, dy)
  for name, values in {"x": x64, **weights64}.items():
    np.testing.assert_allclose(
        found[f"d {name}"], oracle.finite_differences(objective, values),
        atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


# One expert.


def test_one_expert_is_the_dense_layer():
  # p = softmax of one logit = 1, and 12 slots are for 12 tokens: y = FFN(x).
  weights, x, _ = draw("one expert, einsum", "no padding")
  dense = oracle.relu(x @ weights["wi/kernel"][0]) @ weights["wo/kernel"][0]
  for mode in ("train", "eval"):
    found = built("one expert, einsum", mode)(weights, x)
    np.testing.assert_allclose(found["y"], dense, atol=TOLERANCE)
    # f = P = 1, N = 1.
    assert found["load_balancing_loss"] == pytest.approx(1, abs=1e-6)


def test_train_and_eval_capacity():
  # All 8 tokens choose one expert of 4: int(8 * 1.0 / 4) = 2 are kept in
  # training, int(8 * 2.0 / 4) = 4 in evaluation.
  layer = make_layer(4, 8, capacity_factor_train=1.0, capacity_factor_eval=2.0)
  rng = np.random.default_rng(0)
  weights = random_weights(rng, model=MODEL, hidden=HIDDEN)
  weights["router/kernel"][:] = [0, 0, 1, 0]
  x = np.abs(rng.normal(size=[1, 8, MODEL]))
  for mode, kept in (("train", 2), ("eval", 4)):
    found = BuiltLayer(layer, f"batch:1,length:8,d_model:{MODEL}", mode=mode)(
        weights, x)
    assert (found["y"][0] != 0).any(axis=-1).tolist() == (
        [True] * kept + [False] * (8 - kept))
    assert found["dropped_fraction"] == pytest.approx(1 - kept / 8, abs=1e-6)


# Jitter.


def test_jitter_is_for_the_router_only():
  # The router sees x (1 + jitter (2 u - 1)), u uniform: x times U(1 - jitter,
  # 1 + jitter), section "exploration" of the paper; E_i gets x itself.
  weights, x, real = draw("plain", "no padding")
  run = BuiltLayer(
      make_layer(4, 12, jitter=.5), f"batch:4,length:6,d_model:{MODEL}",
      scope=SCOPE)
  dims = mtf.convert_to_shape(f"o:1,g:2,s:12,d_model:{MODEL}").dims
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  with tf.variable_scope(SCOPE):
    u = stateless.uniform(mesh, dims, "jitter")
  u, = evaluate(lower(mesh), [u])
  x64 = x.reshape(2, 12, MODEL).astype(np.float64)
  slots = oracle.capacity(12, 4, 1.25, 1)
  right = oracle.switch_layer(
      x64, weights, slots, router_x=x64 * (1 + .5 * (2 * u[0] - 1)))
  found = run(weights, x, real)
  np.testing.assert_allclose(
      found["y"], right.y.reshape(x.shape), atol=TOLERANCE)
  quiet = oracle.switch_layer(x64, weights, slots)
  assert np.abs(found["y"] - quiet.y.reshape(x.shape)).max() > .01


def noisy(mode="train", scope=SCOPE, **changed):
  # Capacity for all, so that no token is 0 for another reason.
  layer = make_layer(4, 12, capacity_factor_train=4.0, capacity_factor_eval=4.0,
                     **changed)
  return BuiltLayer(layer, f"batch:4,length:6,d_model:{MODEL}", mode=mode,
                    scope=scope)


NOISE = pytest.mark.parametrize(
    "noise", [{"jitter": .1}, {"dropout_rate": .5}], ids=["jitter", "dropout"])


@NOISE
def test_noise_is_off_in_eval(noise):
  weights, x, _ = draw("plain", "no padding")
  quiet = noisy("eval")(weights, x)["y"]
  np.testing.assert_array_equal(noisy("eval", **noise)(weights, x)["y"], quiet)
  assert (noisy("train", **noise)(weights, x)["y"] != quiet).any()


@NOISE
def test_noise_depends_on_step_layer_and_seed(noise, monkeypatch):
  weights, x, _ = draw("plain", "no padding")
  run = noisy(**noise)
  first = run(weights, x, step=3)["y"]
  np.testing.assert_array_equal(run(weights, x, step=3)["y"], first)
  np.testing.assert_array_equal(noisy(**noise)(weights, x, step=3)["y"], first)
  assert (run(weights, x, step=4)["y"] != first).any()
  other = noisy(scope="block_001/layer_001/SwitchFFN", **noise)
  assert (other(weights, x, step=3)["y"] != first).any()
  monkeypatch.setattr(stateless, "random_seed", lambda: 1)
  assert (noisy(**noise)(weights, x, step=3)["y"] != first).any()


# Expert dropout.


def test_expert_dropout_keeps_the_mean():
  # One expert, W_out = 1, W_in >= 0, x > 0: y is h, the hidden units. Each is 0
  # or h / (1 - rate); over n draws the share of 0 is rate, up to 4 standard
  # deviations sqrt(rate (1 - rate) / n): then the mean is h.
  rate, steps = .4, 50
  layer = make_layer(1, 12, capacity_factor_train=1.0, dropout_rate=rate)
  run = BuiltLayer(layer, f"batch:2,length:6,d_model:{HIDDEN}")
  rng = np.random.default_rng(2)
  weights = {"router/kernel": np.zeros([HIDDEN, 1]),
             "wi/kernel": rng.uniform(.5, 1, [1, HIDDEN, HIDDEN]),
             "wo/kernel": np.eye(HIDDEN)[None]}
  x = rng.uniform(.5, 1, [2, 6, HIDDEN])
  y = np.array([run(weights, x, step=step)["y"] for step in range(steps)])
  hidden = np.broadcast_to(x @ weights["wi/kernel"][0], y.shape)
  kept = y != 0
  np.testing.assert_allclose(y[kept], hidden[kept] / (1 - rate), rtol=1e-5)
  bound = 4 * np.sqrt(rate * (1 - rate) / y.size)
  assert abs(1 - kept.mean() - rate) < bound
  np.testing.assert_allclose(y.mean(), hidden.mean(), rtol=.04)
  # Each unit of each token at each step for itself: no correlation.
  for axis in range(kept.ndim):
    one, next_one = kept.take(range(kept.shape[axis] - 1), axis), kept.take(
        range(1, kept.shape[axis]), axis)
    r = np.corrcoef(one.reshape(-1), next_one.reshape(-1))[0, 1]
    assert abs(r) < 4 / np.sqrt(one.size)


# Padding.


@pytest.mark.parametrize("name", ["plain", "plain, einsum", "capacity 1"])
def test_padding_changes_no_real_token(name):
  # What stands in padded positions, however large, is nobody's business.
  weights, x, real = draw(name, "scattered")
  run = built(name, "train")
  clean = run(weights, np.where(real[..., None], x, 0), real)
  dirty = run(weights, np.where(real[..., None], x, 100 * x + 7), real)
  for key in clean:
    np.testing.assert_array_equal(dirty[key], clean[key], err_msg=key)
  assert (dirty["y"][real == 0] == 0).all()
  assert 0 < real.mean() < 1


def test_padding_moves_no_real_token():
  # 6 real tokens in one group of 12, packed or apart: same capacity, same
  # order, same outputs.
  weights, x, _ = draw("plain", "no padding")
  x = x.reshape(1, 24, MODEL)[:, :12]
  run = BuiltLayer(make_layer(4, 12), f"batch:1,length:12,d_model:{MODEL}")
  packed = run(weights, x, np.float32([[1] * 6 + [0] * 6]))
  spread = np.zeros_like(x)
  spread[:, ::2] = x[:, :6]
  apart = run(weights, spread, np.float32([[1, 0] * 6]))
  np.testing.assert_allclose(
      apart["y"][:, ::2], packed["y"][:, :6], atol=TOLERANCE)
  assert apart["loss"] == pytest.approx(packed["loss"], abs=1e-8)


@pytest.mark.parametrize("nonpadding", [None, 1])
def test_no_padding_is_all_ones(nonpadding, new_mesh):
  weights, x, _ = draw("plain", "no padding")
  right = built("plain", "train")(weights, x)["y"]
  mesh = new_mesh()
  context = make_context(mesh, nonpadding=nonpadding)
  x = constant(mesh, x, mtf.convert_to_shape(
      f"batch:4,length:6,d_model:{MODEL}").dims)
  with tf.variable_scope(SCOPE):
    y = make_layer(4, 12, capacity_factor_train=1.25).call(context, x)
  y, = evaluate(lower(mesh), [y], weights)
  np.testing.assert_allclose(y, right, atol=TOLERANCE)


# Decoding.


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_decoding_drops_nothing(dispatcher, new_mesh):
  # All 8 tokens choose expert 2, the factors allow for 1, and all are kept.
  mesh, rng = new_mesh(), np.random.default_rng(0)
  weights = random_weights(rng, model=MODEL, hidden=HIDDEN)
  weights["router/kernel"][:] = [0, 0, 1, 0]
  x = np.abs(rng.normal(size=[8, MODEL])).astype(np.float32)
  layer = make_layer(4, 4, jitter=.1, capacity_factor_train=.1, dropout_rate=.5,
                     capacity_factor_eval=.1,
                     dispatcher=DISPATCHERS[dispatcher]())
  y = layer.call(
      make_context(mesh, mode="incremental"), constant(
          mesh, x, mtf.convert_to_shape(f"batch:8,d_model:{MODEL}").dims))
  assert y.shape == mtf.convert_to_shape(f"batch:8,d_model:{MODEL}")
  y, = evaluate(lower(mesh), [y], weights)
  right = oracle.switch_layer(x[None].astype(np.float64), weights, 8)
  assert right.dropped == 0 and right.load[2] == 1
  np.testing.assert_allclose(y, right.y[0], atol=TOLERANCE)
