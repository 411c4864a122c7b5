"""Switch attention against NumPy: appendix A, one token at a time."""

import functools
import json
import pathlib

import numpy as np
import pytest
from helpers import oracle
from helpers.graphs import BuiltLayer

from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

BATCH, LENGTH, MODEL, HEADS, D_KV, EXPERTS, HIDDEN = 2, 5, 6, 2, 3, 4, 8
GROUP, BUCKETS = 10, 4
TOLERANCE = 1e-5


def make_layer(hidden_size, factor=1.25, **changed):
  return SwitchSelfAttention(
      num_heads=HEADS, key_value_size=D_KV, projection=lambda: SwitchFFN(
          num_experts=EXPERTS, hidden_size=hidden_size, group_size=GROUP,
          capacity_factor_train=factor, min_capacity=1,
          load_balancing_coef=1.0, router=SwitchRouter(Argmax())), **changed)


@functools.cache
def built(hidden_size, factor, **changed):
  return BuiltLayer(
      make_layer(hidden_size, factor, **changed),
      f"batch:{BATCH},length:{LENGTH},d_model:{MODEL}", gradients=True,
      scope="encoder/block_000/layer_000/SwitchSelfAttention")


def draw(hidden_size, bias, seed=0):
  rng = np.random.default_rng(seed)
  inner = HEADS * D_KV
  weights = {"o": rng.normal(size=[inner, MODEL])}
  for name in ("q", "kv"):
    weights[f"{name}/router/kernel"] = rng.normal(size=[MODEL, EXPERTS])
    rows = MODEL if hidden_size is None else hidden_size
    weights[f"{name}/wo/kernel"] = rng.normal(size=[EXPERTS, rows, inner])
    if hidden_size is not None:
      weights[f"{name}/wi/kernel"] = rng.normal(
          size=[EXPERTS, MODEL, hidden_size])
  if bias:
    weights["relative_attention_bias"] = rng.normal(size=[HEADS, BUCKETS])
  return weights, *rng.normal(size=[2, BATCH, LENGTH, MODEL])


def project(x, weights, name, slots):
  """A Switch layer whose experts end in other features than they begin."""
  own = {k.removeprefix(f"{name}/"): v for k, v in weights.items()
         if k.startswith(f"{name}/")}
  tokens = x.reshape(-1, MODEL)
  y, losses = np.zeros([len(tokens), HEADS * D_KV]), []
  for start in range(0, len(tokens), GROUP):
    group = tokens[start:start + GROUP]
    routes = oracle.route(group, own["router/kernel"], [1] * GROUP, slots)
    losses.append(oracle.load_balancing_loss(routes.probs, routes.experts))
    for s, (p, i, slot) in enumerate(zip(
        routes.probs, routes.experts, routes.slots, strict=True)):
      if slot is not None:
        expert = (group[s] @ own["wo/kernel"][i] if "wi/kernel" not in own
                  else oracle.expert(group[s], own, i))
        y[start + s] = p[i] * expert
  return y.reshape(BATCH, LENGTH, HEADS, D_KV), sum(losses) / len(losses)


def attend(x, weights, slots):
  """Output of the layer and its losses."""
  q, loss_q = project(x, weights, "q", slots)
  kv, loss_kv = project(x, weights, "kv", slots)
  q = q / np.sqrt(D_KV)
  y = np.zeros([BATCH, LENGTH, HEADS, D_KV])
  for b, s, h in np.ndindex(BATCH, LENGTH, HEADS):
    logits = kv[b, :, h] @ q[b, s, h]
    if "relative_attention_bias" in weights:
      logits += [weights["relative_attention_bias"][h, bucket(m - s)]
                 for m in range(LENGTH)]
    y[b, s, h] = oracle.softmax(logits) @ kv[b, :, h]
  y = y.reshape(BATCH, LENGTH, HEADS * D_KV) @ weights["o"]
  return y, loss_q + loss_kv


def bucket(distance):
  """T5's buckets, 4 of them, both directions: 0 | past 1+ | 2, 3 for future.

  Raffel et al., arXiv 1910.10683, section 2.1: half of the buckets for each
  sign, half of those for exact distances: here 2 a sign, distance 0 and more.
  """
  return (2 if distance > 0 else 0) + min(abs(distance), 1)


@pytest.mark.parametrize("bias", [None, "bias"])
@pytest.mark.parametrize("factor", [1.0, None])
@pytest.mark.parametrize("hidden_size", [None, HIDDEN])
def test_output_loss_and_gradients(hidden_size, factor, bias):
  weights, x, dy = draw(hidden_size, bias)
  slots = GROUP if factor is None else oracle.capacity(
      GROUP, EXPERTS, factor, 1)
  run = built(hidden_size, factor, relative_attention_type=bias,
              relative_attention_num_buckets=BUCKETS)
  found = run(weights, x, dy=dy)
  y, loss = attend(x, weights, slots)
  np.testing.assert_allclose(found["y"], y, atol=TOLERANCE, rtol=TOLERANCE)
  assert found["loss"] == pytest.approx(loss, abs=TOLERANCE)

  def objective():
    y, loss = attend(x, weights, slots)
    return (y * dy).sum() + loss

  if factor is None or bias is None:
    return  # the other case has it all; finite differences are slow
  for name in weights:
    right = oracle.finite_differences(objective, weights[name])
    np.testing.assert_allclose(
        found[f"d {name}"], right, rtol=TOLERANCE,
        atol=TOLERANCE * np.abs(right).max(), err_msg=name)


def test_tokens_are_dropped_in_one_case():
  weights, x, _ = draw(None, None)
  found = built(None, 1.0, relative_attention_type=None,
                relative_attention_num_buckets=BUCKETS)(weights, x)
  assert found["dropped_fraction"] > 0


def test_metrics_of_the_two_projections_are_apart():
  run = built(None, 1.0, relative_attention_type=None,
              relative_attention_num_buckets=BUCKETS)
  names = [t.op.name for t in run._outputs.values()]
  assert len(names) == len(set(names))


def test_variables():
  # The golden file is the checkpoint format, see test_layer.py.
  golden = json.loads(pathlib.Path(__file__).with_name("golden").joinpath(
      "switch_attention_variables.json").read_text())
  run = built(None, 1.0, relative_attention_type="bias",
              relative_attention_num_buckets=BUCKETS)
  assert golden == {name: {d.name: d.size for d in v.shape}
                    for name, v in run.variables.items()}
  assert [list(golden[k]) for k in golden] == [
      [d.name for d in run.variables[k].shape] for k in golden]


@pytest.mark.parametrize("name", ["num_heads", "key_value_size"])
def test_out_of_range(name):
  with pytest.raises(ValueError, match=rf"^SwitchSelfAttention: {name} must be "
                     rf"a whole number, at least 1, with {name}=0\. Set "):
    SwitchSelfAttention(**{name: 0})
