import dataclasses
import functools

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, lower, make_context

from switch_mtf.dims import MoeDims
from switch_mtf.layers.dispatch import (
  EinsumDispatcher,
  GatherDispatcher,
  _InPlaceDispatcher,
  default_dispatcher,
  indices,
)
from switch_mtf.layers.routing import Routing

DISPATCHERS = [EinsumDispatcher(), GatherDispatcher()]
each_dispatcher = pytest.mark.parametrize(
    "dispatcher", DISPATCHERS, ids=["einsum", "gather"])
TOLERANCE = 1e-5


@dataclasses.dataclass
class Case:
  """A routing by hand, with the tokens and experts it is applied to."""

  dims: MoeDims
  x: np.ndarray  # OGSM
  scale: np.ndarray  # EM: what expert e does is to multiply by scale[e]
  expert: np.ndarray  # OGSK
  slot: np.ndarray  # OGSK
  weight: np.ndarray  # OGSK
  choice: np.ndarray  # OGEC
  dy: np.ndarray  # OGSM: the gradient at the output


# name: outer, groups, tokens, experts, capacity, choices
SIZES = {
    "one choice": (1, 3, 8, 4, 2, 1),
    "two choices": (1, 3, 8, 4, 3, 2),
    "two choices, replicas": (2, 2, 6, 3, 2, 2),
    "capacity 1": (1, 2, 5, 3, 1, 1),
    "one expert": (2, 1, 4, 1, 3, 1),
    "more experts than tokens": (1, 2, 2, 7, 1, 2),
    "three of three experts": (1, 1, 4, 3, 4, 3),
}
each_size = pytest.mark.parametrize("name", SIZES)


@functools.cache
def make_case(name):
  """Each token chooses K experts at random; the first to come get the slots."""
  outer, groups, tokens, experts, capacity, choices = SIZES[name]
  rng = np.random.default_rng(len(name))
  dims = MoeDims.create(
      mtf.convert_to_shape(
          f"outer_batch:{outer},batch:{groups},length:{tokens},d_model:5"),
      num_experts=experts, hidden_size=1, group_size=tokens,
      capacity_factor=1.0, min_capacity=1, num_choices=choices)
  dims = dataclasses.replace(
      dims, capacity_dim=mtf.Dimension("expert_capacity", capacity))
  expert = np.zeros([outer, groups, tokens, choices], np.int32)
  slot = np.full_like(expert, capacity)
  choice = np.full([outer, groups, experts, capacity], tokens * choices)
  for o, g in np.ndindex(outer, groups):
    taken = [0] * experts
    for s in range(tokens):
      expert[o, g, s] = rng.permutation(experts)[:choices]
      for k, i in enumerate(expert[o, g, s]):
        if taken[i] < capacity:
          slot[o, g, s, k] = taken[i]
          choice[o, g, i, taken[i]] = s * choices + k
          taken[i] += 1
  kept = slot < capacity
  x, dy = rng.normal(size=[2, outer, groups, tokens, 5]).astype(np.float32)
  return Case(
      dims, x, rng.normal(size=[experts, 5]).astype(np.float32), expert, slot,
      (rng.uniform(.1, 1, expert.shape) * kept).astype(np.float32),
      choice.astype(np.int32), dy)


def graph(mesh, case, dispatcher, weight=None):
  """Tokens through their experts: inputs, what the experts get, output."""
  dims = case.dims
  weight = constant(mesh, case.weight if weight is None else weight, dims.OGSK)
  routing = Routing(
      constant(mesh, case.expert, dims.OGSK),
      constant(mesh, case.slot, dims.OGSK), weight, {}, {})
  x = constant(mesh, case.x, dims.OGSM)
  scale = constant(mesh, case.scale, [dims.experts_dim, dims.model_dim])
  h = dispatcher.to_experts(x, routing, dims)
  y = dispatcher.from_experts(h * scale, routing, dims)
  return [x, scale, weight], h, y


def run(case, dispatcher):
  """Output, and gradients of sum(y * dy) by x, scale and weight."""
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  inputs, h, y = graph(mesh, case, dispatcher)
  dy = constant(mesh, case.dy, case.dims.OGSM)
  gradients = mtf.gradients([mtf.reduce_sum(y * dy)], inputs)
  return evaluate(lower(mesh), [h, y, *gradients])


def expected(case):
  """The same from the definition: y = sum over kept choices of weight E(x)."""
  y, dx = np.zeros_like(case.x), np.zeros_like(case.x)
  dscale, dweight = np.zeros_like(case.scale), np.zeros_like(case.weight)
  for o, g, s, k in np.ndindex(case.slot.shape):
    if case.slot[o, g, s, k] >= case.dims.capacity_dim.size:
      continue
    i, w = case.expert[o, g, s, k], case.weight[o, g, s, k]
    x, dy = case.x[o, g, s], case.dy[o, g, s]
    y[o, g, s] += w * case.scale[i] * x
    dx[o, g, s] += w * case.scale[i] * dy
    dscale[i] += w * x * dy
    dweight[o, g, s, k] = (case.scale[i] * x * dy).sum()
  return y, dx, dscale, dweight


@each_size
def test_indices(name, new_mesh):
  case, mesh = make_case(name), new_mesh()
  dims = case.dims
  routing = Routing(constant(mesh, case.expert, dims.OGSK),
                    constant(mesh, case.slot, dims.OGSK), None, {}, {})
  maps = indices(routing, dims)
  slot, choice = evaluate(lower(mesh), maps)
  capacity, experts = dims.capacity_dim.size, dims.experts_dim.size
  np.testing.assert_array_equal(slot, np.where(
      case.slot < capacity, case.expert * capacity + case.slot,
      experts * capacity))
  np.testing.assert_array_equal(choice, case.choice)


@each_size
def test_in_place(name, new_mesh):
  # Nothing is dropped: a choice without a slot has weight 0.
  case, mesh = make_case(name), new_mesh()
  dims, dispatcher = case.dims, _InPlaceDispatcher()
  expert, weight = (constant(mesh, value, dims.OGSK)
                    for value in (case.expert, case.weight))
  routing = Routing(expert, None, weight, {}, {})
  h = dispatcher.to_experts(
      constant(mesh, case.x, dims.OGSM), routing, dims)
  scale = constant(
      mesh, case.scale[case.expert], dims.OGSKM)  # what the experts do
  y = dispatcher.from_experts(h * scale, routing, dims)
  found, = evaluate(lower(mesh), [y])
  np.testing.assert_allclose(found, expected(case)[0], TOLERANCE, TOLERANCE)


@each_dispatcher
@each_size
def test_output_and_gradients(name, dispatcher):
  # y and every gradient against loops over tokens and choices.
  case = make_case(name)
  _, *found = run(case, dispatcher)
  for mine, right in zip(found, expected(case), strict=True):
    np.testing.assert_allclose(mine, right, atol=TOLERANCE)


@each_size
def test_einsum_equals_gather(name):
  case = make_case(name)
  for einsum, gather in zip(
      *(run(case, d) for d in DISPATCHERS), strict=True):
    np.testing.assert_allclose(einsum, gather, atol=TOLERANCE)


@each_dispatcher
@each_size
def test_slots_hold_their_tokens(name, dispatcher, new_mesh):
  # Slot c of expert e in group g is row g C + c of the expert; empty ones are
  # 0, exactly.
  case, mesh = make_case(name), new_mesh()
  _, h, _ = graph(mesh, case, dispatcher)
  assert h.shape.dims == case.dims.EXM
  h, = evaluate(lower(mesh), [h])
  outer, groups, experts, capacity = case.choice.shape
  h = h.reshape([experts, outer, groups, capacity, -1])
  tokens, choices = case.slot.shape[2:]
  for o, g, i, c in np.ndindex(case.choice.shape):
    number = case.choice[o, g, i, c]
    if number == tokens * choices:
      assert (h[i, o, g, c] == 0).all()
    else:
      np.testing.assert_array_equal(
          h[i, o, g, c], case.x[o, g, number // choices])


@each_dispatcher
@pytest.mark.parametrize(
    "name", [n for n, sizes in SIZES.items() if sizes[-1] == 1])
def test_round_trip(name, dispatcher, new_mesh):
  # Weight 1, experts that do nothing: a kept token comes back as it was, a
  # dropped one as 0. Both exactly.
  case = make_case(name)
  case = dataclasses.replace(case, scale=np.ones_like(case.scale))
  kept = case.slot < case.dims.capacity_dim.size
  assert kept.any() and not kept.all()
  mesh = new_mesh()
  _, _, y = graph(mesh, case, dispatcher, weight=kept.astype(np.float32))
  y, = evaluate(lower(mesh), [y])
  np.testing.assert_array_equal(y[kept[..., 0]], case.x[kept[..., 0]])
  assert (y[~kept[..., 0]] == 0).all()


@each_dispatcher
@each_size
def test_dropped_tokens_are_0(name, dispatcher):
  # No choice kept: output and gradient are 0, not close to it.
  case = make_case(name)
  dropped = (case.slot >= case.dims.capacity_dim.size).all(axis=-1)
  _, y, dx, _, dweight = run(case, dispatcher)
  assert (y[dropped] == 0).all()
  assert (dx[dropped] == 0).all()
  assert (dweight[case.slot >= case.dims.capacity_dim.size] == 0).all()
  assert (y[~dropped] != 0).all()


def test_some_tokens_are_dropped():
  # Else the test above would test nothing.
  for name in ("one choice", "two choices, replicas", "capacity 1"):
    case = make_case(name)
    assert (case.slot == case.dims.capacity_dim.size).all(axis=-1).any(), name


@each_dispatcher
@pytest.mark.parametrize("name", ["one choice", "two choices"])
def test_bfloat16_stays_bfloat16(name, dispatcher, new_mesh):
  # No float32 goes through the all-to-all (section 2.4).
  case, mesh = make_case(name), new_mesh()
  inputs, _, _ = graph(mesh, case, dispatcher)
  dims = case.dims
  routing = Routing(
      constant(mesh, case.expert, dims.OGSK),
      constant(mesh, case.slot, dims.OGSK), inputs[2], {}, {})
  h = dispatcher.to_experts(mtf.cast(inputs[0], tf.bfloat16), routing, dims)
  y = dispatcher.from_experts(h, routing, dims)
  assert h.dtype == tf.bfloat16 and y.dtype == tf.bfloat16
  y = mtf.to_float(y)
  found, = evaluate(lower(mesh), [y])
  right = expected(dataclasses.replace(
      case, scale=np.ones_like(case.scale)))[0]
  # bfloat16 has 8 bits: weight, x and product each err by up to 2^-9.
  np.testing.assert_allclose(found, right, atol=1e-2 * np.abs(right).max())


@each_dispatcher
def test_other_dimensions_are_refused(dispatcher, new_mesh):
  mesh, dims = new_mesh(), make_case("one choice").dims
  x = mtf.zeros(mesh, dims.OGSM[1:])
  who = type(dispatcher).__name__
  with pytest.raises(ValueError, match=f"^{who} x: "):
    dispatcher.to_experts(x, None, dims)
  with pytest.raises(ValueError, match=f"^{who} y: "):
    dispatcher.from_experts(x, None, dims)


def test_default_dispatcher(new_mesh):
  def kind(mesh, **options):
    dims = make_case("one choice").dims
    return type(default_dispatcher(make_context(mesh, **options), dims))

  # Only a TPU's mesh is made with a variable placer (upstream's utils.py).
  placer = mtf.utils.BalancedVariablePlacer(["cpu:0"], [0])
  tpu = mtf.Mesh(mtf.Graph(), "mesh", placer)
  for mode in ("train", "eval", "incremental"):
    assert kind(tpu, mode=mode) == EinsumDispatcher
  assert kind(new_mesh(), mode="train") == GatherDispatcher
  assert kind(new_mesh(), mode="eval") == GatherDispatcher
  # 24 choices, of at most 32.
  assert kind(new_mesh(), mode="incremental") == _InPlaceDispatcher
  assert kind(new_mesh(), mode="incremental", layout="batch:a",
              mesh_shape="a:3") == GatherDispatcher
