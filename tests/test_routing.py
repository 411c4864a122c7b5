import dataclasses

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, lower, make_context
from hypothesis import given, settings
from hypothesis import strategies as st

from switch_mtf.dims import MoeDims
from switch_mtf.layers import dispatch
from switch_mtf.layers.routing import Routing, SwitchRouter


def make_dims(groups, tokens, experts, capacity, *, outer=1, choices=1):
  dims = MoeDims.create(
      mtf.convert_to_shape(
          f"outer_batch:{outer},batch:{groups},length:{tokens},d_model:3"),
      num_experts=experts, hidden_size=1, group_size=tokens,
      capacity_factor=1.0, min_capacity=1, num_choices=choices)
  return dataclasses.replace(
      dims, capacity_dim=mtf.Dimension("expert_capacity", capacity))


def probs_of(experts, count, sure=.7):
  """Probabilities that make the tokens choose `experts`: `sure` for those."""
  rest = (1 - sure) / max(1, count - 1)
  return np.where(np.eye(count)[experts] > 0, sure if count > 1 else 1., rest)


def assign(mesh, probs, capacity, real=None):
  """Routes one group, given probabilities [S, E]; returns its Routing."""
  probs = np.asarray(probs, np.float32)
  tokens, experts = probs.shape
  real = np.ones(tokens) if real is None else np.asarray(real)
  dims = make_dims(1, tokens, experts, capacity)
  logits = np.log(np.maximum(probs, 1e-30))
  routing = SwitchRouter().route(
      constant(mesh, logits[None, None], dims.OGSE),
      constant(mesh, real.astype(np.float32)[None, None], dims.OGS), dims,
      train=False)
  names = ["expert_OGSK", "slot_OGSK", "weight_OGSK"]
  _, choice_OGEC = dispatch.indices(routing, dims)
  values = evaluate(lower(mesh), [
      *(getattr(routing, name) for name in names), choice_OGEC,
      *routing.metrics.values()])
  found = dict(zip(
      [*names, "choice_OGEC", *routing.metrics], values, strict=True))
  for name in names:
    found[name] = found[name][0, 0, :, 0]
  found["choice_OGEC"] = found["choice_OGEC"][0, 0]
  return found


def test_who_goes_where(new_mesh):
  # Expert 0 is the choice of tokens 0, 2 and 3, expert 2 of token 1; in order
  # of position. Empty slots hold 4, the number of tokens.
  found = assign(new_mesh(), probs_of([0, 2, 0, 0], 3), 3)
  assert found["expert_OGSK"].tolist() == [0, 2, 0, 0]
  assert found["slot_OGSK"].tolist() == [0, 0, 1, 2]
  assert found["choice_OGEC"].tolist() == [[0, 2, 3], [4, 4, 4], [1, 4, 4]]
  # The weight is the softmax probability itself (equation 2).
  np.testing.assert_allclose(found["weight_OGSK"], [.7] * 4, rtol=1e-6)


def test_later_tokens_are_dropped(new_mesh):
  # Expert 1 has 2 slots: of tokens 0, 2, 3, 5 the last two are dropped, though
  # they are surer. Slot 2 = capacity means dropped, 6 = tokens means empty.
  probs = probs_of([1, 0, 1, 1, 0, 1], 2)
  probs[3] = [.01, .99]
  probs[5] = [.02, .98]
  found = assign(new_mesh(), probs, 2)
  assert found["slot_OGSK"].tolist() == [0, 0, 1, 2, 1, 2]
  assert found["choice_OGEC"].tolist() == [[1, 4], [0, 2]]
  np.testing.assert_allclose(
      found["weight_OGSK"], [.7, .7, .7, 0, .7, 0], rtol=1e-6)
  assert found["weight_OGSK"][3] == 0
  # 2 of 6 are dropped; 2/6 and 4/6 choose, before any is dropped; entropy by
  # its definition; mean probability (4 * .7 + .99 + .98) / 6.
  assert found["dropped_fraction"] == pytest.approx(2 / 6, abs=1e-6)
  assert found["expert_load"] == pytest.approx([2 / 6, 4 / 6], abs=1e-6)
  entropy = -(probs * np.log(probs)).sum() / 6
  assert found["router_entropy"] == pytest.approx(entropy, abs=1e-6)
  assert found["router_probability"] == pytest.approx(4.77 / 6, abs=1e-6)


@pytest.mark.parametrize("probs, expert", [
    ([.25, .25, .25, .25], 0), ([.2, .4, .4, 0.], 1), ([.1, .1, .4, .4], 2)])
def test_tie_goes_to_the_lower_index(new_mesh, probs, expert):
  found = assign(new_mesh(), [probs], 1)
  assert found["expert_OGSK"].tolist() == [expert]


def test_padding_takes_no_slot(new_mesh):
  # Tokens 0 and 2 are padding: token 1 gets slot 0, token 3 slot 1 of expert 0;
  # padding has slot 2 = capacity and weight 0.
  found = assign(new_mesh(), probs_of([0, 0, 0, 0], 2), 2, [0, 1, 0, 1])
  assert found["slot_OGSK"].tolist() == [2, 0, 2, 1]
  assert found["choice_OGEC"].tolist() == [[1, 3], [4, 4]]
  assert found["weight_OGSK"][[0, 2]].tolist() == [0, 0]
  assert found["dropped_fraction"] == pytest.approx(0, abs=1e-6)
  assert found["expert_load"] == pytest.approx([1, 0], abs=1e-6)


def test_nothing_but_padding(new_mesh):
  found = assign(new_mesh(), probs_of([0, 1, 0], 2), 2, [0, 0, 0])
  assert found["slot_OGSK"].tolist() == [2, 2, 2]
  assert found["choice_OGEC"].tolist() == [[3, 3], [3, 3]]
  assert found["weight_OGSK"].tolist() == [0, 0, 0]
  assert found["expert_load"].tolist() == [0, 0]
  assert found["router_entropy"] == 0


def test_capacity_1(new_mesh):
  # The first token of each expert stays: 0 for expert 1, 2 for expert 0.
  found = assign(new_mesh(), probs_of([1, 1, 0, 0, 1], 2), 1)
  assert found["slot_OGSK"].tolist() == [0, 1, 0, 1, 1]
  assert found["choice_OGEC"].tolist() == [[2], [0]]


def test_one_expert(new_mesh):
  # The softmax of one number is 1; 3 of 4 tokens find a slot.
  found = assign(new_mesh(), np.ones([4, 1]), 3)
  assert found["slot_OGSK"].tolist() == [0, 1, 2, 3]
  assert found["choice_OGEC"].tolist() == [[0, 1, 2]]
  assert found["weight_OGSK"].tolist() == [1, 1, 1, 0]


def test_more_experts_than_tokens(new_mesh):
  # 2 tokens, 5 experts: three experts stay empty.
  found = assign(new_mesh(), probs_of([4, 2], 5), 1)
  assert found["expert_OGSK"].tolist() == [4, 2]
  assert found["slot_OGSK"].tolist() == [0, 0]
  assert found["choice_OGEC"].tolist() == [[2], [2], [1], [2], [0]]


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_logits_are_float32(new_mesh, dtype):
  # Section 2.4: the router computes in float32 whatever x is. x is exact in
  # bfloat16; the kernel is not: 1.001 would be read as 1.
  mesh, dims = new_mesh(), make_dims(1, 2, 2, 1)
  context = make_context(mesh, mode="eval")
  context.variable_dtype = mtf.VariableDType(tf.float32, tf.float32, dtype)
  x = mtf.cast(constant(
      mesh, np.float32([[[[1, 2, 3], [0, 1, 0]]]]), dims.OGSM), dtype)
  routing = SwitchRouter()(x, mtf.ones(mesh, mtf.Shape(dims.OGS)), dims,
                           context)
  assert routing.weight_OGSK.dtype == tf.float32
  weight, = evaluate(lower(mesh), [routing.weight_OGSK], {
      "router/kernel": np.float32([[1.001, 0], [0, 1.003], [0, -1.003]])})
  # Token 0: logits (1.001, -1.003), softmax of the larger 1 / (1 + e^-2.004).
  # Token 1: logits (0, 1.003), 1 / (1 + e^-1.003).
  np.testing.assert_allclose(
      weight[0, 0, :, 0],
      [1 / (1 + np.exp(-2.004)), 1 / (1 + np.exp(-1.003))], rtol=1e-6)


@pytest.mark.parametrize("wrong", ["x", "nonpadding"])
def test_other_dimensions_are_refused(new_mesh, wrong):
  mesh, dims = new_mesh(), make_dims(2, 3, 2, 1)
  shapes = {"x": dims.OGSM, "nonpadding": dims.OGS}
  shapes[wrong] = shapes[wrong][1:]
  with pytest.raises(ValueError, match=f"^SwitchRouter {wrong}: "):
    SwitchRouter()(*(mtf.zeros(mesh, s) for s in shapes.values()), dims,
                   make_context(mesh))


# Properties.

SIZES = [  # outer, groups, tokens, experts, capacity
    (1, 1, 1, 1, 1), (1, 2, 7, 3, 2), (2, 2, 4, 6, 1), (1, 3, 8, 2, 8)]


def check_routing(expert, slot, choice, real, experts, capacity):
  """The contract of a Routing with one choice, for one group."""
  tokens = len(expert)
  kept = [s for s in range(tokens) if slot[s] < capacity]
  places = [(expert[s], slot[s]) for s in kept]
  assert len(set(places)) == len(places), "a slot holds two tokens"
  assert all(real[s] for s in kept), "padding has a slot"
  assert all(0 <= p < capacity for _, p in places)
  for i in range(experts):
    asked = [s for s in range(tokens) if real[s] and expert[s] == i]
    stayed = [s for s in kept if expert[s] == i]
    assert stayed == asked[:capacity], "not in order of position"
  expected = np.full([experts, capacity], tokens)
  for s, place in zip(kept, places, strict=True):
    expected[place] = s
  np.testing.assert_array_equal(choice, expected)
  return len(kept)


@pytest.mark.parametrize("outer, groups, tokens, experts, capacity", SIZES)
def test_properties(outer, groups, tokens, experts, capacity):
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = make_dims(groups, tokens, experts, capacity, outer=outer)
  shape = [outer, groups, tokens]
  probs = tf.placeholder(tf.float32, [*shape, experts])
  real = tf.placeholder(tf.float32, shape)
  routing = SwitchRouter().route(
      mtf.import_tf_tensor(mesh, tf.log(probs), mtf.Shape(dims.OGSE)),
      mtf.import_tf_tensor(mesh, real, mtf.Shape(dims.OGS)), dims, train=False)
  _, choice_OGEC = dispatch.indices(routing, dims)
  lowering = lower(mesh)
  outputs = [lowering.export_to_tf_tensor(t) for t in (
      routing.expert_OGSK, routing.slot_OGSK, choice_OGEC,
      routing.weight_OGSK, routing.metrics["dropped_fraction"])]
  session = tf.Session()
  count = outer * groups * tokens

  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(st.lists(st.integers(0, experts - 1), min_size=count, max_size=count),
         st.lists(st.booleans(), min_size=count, max_size=count))
  def check(chosen, nonpadding):
    chosen, nonpadding = (np.reshape(a, shape) for a in (chosen, nonpadding))
    expert, slot, choice, weight, dropped = session.run(outputs, {
        probs: probs_of(chosen, experts), real: nonpadding})
    np.testing.assert_array_equal(expert[..., 0], chosen)
    np.testing.assert_array_equal(weight[..., 0] > 0, slot[..., 0] < capacity)
    kept = sum(
        check_routing(expert[g][:, 0], slot[g][:, 0], choice[g], nonpadding[g],
                      experts, capacity) for g in np.ndindex(outer, groups))
    # Kept and dropped are the real tokens.
    if nonpadding.any():
      total = nonpadding.sum()
      assert kept + dropped * total == pytest.approx(total, abs=1e-4)

  check()


def test_indices_of_two_choices(new_mesh):
  # Choice k of token s is number 2 s + k. Token 0: expert 1 slot 0, expert 0
  # slot 0; token 1: expert 1 slot 1, then dropped (slot 2 = capacity); token 2:
  # dropped, expert 0 slot 1. Expert 2 is empty: 6 = 3 tokens * 2 choices.
  mesh, dims = new_mesh(), make_dims(1, 3, 3, 2, choices=2)
  expert = constant(mesh, np.int32([[[[1, 0], [1, 0], [1, 0]]]]), dims.OGSK)
  slot = constant(mesh, np.int32([[[[0, 0], [1, 2], [2, 1]]]]), dims.OGSK)
  routing = Routing(expert, slot, weight_OGSK=None, losses={}, metrics={})
  maps = dispatch.indices(routing, dims)
  slot_of, choice_of = evaluate(lower(mesh), maps)
  # Slot c of expert e is number 2 e + c; 3 experts * 2 slots = 6 is none.
  assert slot_of[0, 0].tolist() == [[2, 0], [3, 6], [6, 1]]
  found = choice_of
  assert found[0, 0].tolist() == [[1, 5], [0, 2], [6, 6]]
