import dataclasses
import functools
import zlib

import mesh_tensorflow as mtf
import numpy as np
import oracle
import oracle_routers
import pytest
import tensorflow.compat.v1 as tf
from conftest import BuiltLayer, lower
from oracle_routers import Coefficients

from switch_mtf.dims import MoeDims
from switch_mtf.layers import stateless
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import Argmax
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
MODEL, HIDDEN = 5, 4
# Large, so that the losses weigh as much as the outputs in the gradients.
COEFS = Coefficients(balance=.5, z=.1)
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}
# Two values that a router compares are equal, or further apart than this.
MARGIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Size:
  tokens: str
  experts: int
  group: int
  factor: float | None
  minimum: int = 1
  linear: bool = False

  @property
  def shape(self):
    return mtf.convert_to_shape(self.tokens).to_integer_list

  @property
  def group_size(self):
    return min(self.group, int(np.prod(self.shape[-2:])))

  @property
  def capacity(self):
    if self.factor is None:
      return self.group_size
    return oracle.capacity(
        self.group_size, self.experts, self.factor, self.minimum)


SIZES = {
    "several groups": Size("batch:4,length:6", 4, 12, 1.25),
    "one group": Size("batch:2,length:5", 3, 1024, 1.0),
    "capacity 1": Size("batch:3,length:4", 4, 4, 1.0),
    "one expert": Size("batch:2,length:6", 1, 6, .5),
    "more experts than tokens": Size("batch:2,length:3", 9, 3, 1.25),
    "groups of one token": Size("batch:2,length:3", 4, 1, 1.25),
    "minimum capacity": Size("batch:2,length:8", 8, 8, 1.0, minimum=3),
    "linear experts": Size("batch:2,length:6", 5, 6, 1.0, linear=True),
    "replicas": Size("outer_batch:2,batch:2,length:6", 3, 6, 1.0),
    # Where tokens are compared by a softmax. TensorFlow computes it in SIMD
    # packets, and what is left over one by one, which may differ in the last
    # bit: equal tokens tie in float32 only if their number fills the packets.
    "16: several groups": Size("batch:4,length:8", 4, 16, 1.25),
    "16: one group": Size("batch:2,length:8", 3, 1024, 1.0),
    "16: capacity 1": Size("batch:4,length:4", 4, 4, 1.0),
    "16: two experts": Size("batch:2,length:8", 2, 8, .75),
    "16: more experts than tokens": Size("batch:4,length:4", 9, 4, 1.25),
    "16: replicas": Size("outer_batch:2,batch:2,length:8", 3, 8, 1.0),
    "16: dropless": Size("batch:2,length:8", 3, 8, None),
}


def best_probabilities(logits):
  return np.array([[oracle.softmax(t).max()] for t in logits])


def probabilities(logits):
  return np.array([oracle.softmax(t) for t in logits])


def apart(logits, real, values):
  """Whether `values` [S, n] of one group have an order in float32 as well.

  Those of equal tokens are equal; so are all where there is one expert.
  """
  if logits.shape[1] == 1:
    return True
  tokens = np.flatnonzero(real)
  for n, s in enumerate(tokens):
    for t in tokens[:n]:
      gap = np.abs(np.log(values[s] / values[t])).min()
      if gap < MARGIN and (logits[s] != logits[t]).any():
        return False
  return True


@dataclasses.dataclass(frozen=True)
class Subject:
  """A router, and what the oracle says of it."""

  make: functools.partial
  route: functools.partial  # (logits, real, capacity), of one group
  compared: object = None  # probabilities compared between tokens
  threshold: float | None = None
  random: bool = False
  coefs: Coefficients = COEFS

  def decided(self, logits, real, drawn):
    """Whether every comparison has the same result in float32; one group."""
    if self.compared and not apart(logits, real, self.compared(logits)):
      return False
    if self.threshold is None or logits.shape[1] == 1:
      return True
    limit = self.threshold * (drawn if self.random else 1)
    gates = np.array([oracle_routers.pair(t)[1][1] for t in logits])
    return (np.abs(gates - limit)[real > 0] > MARGIN).all()

  def routes(self, logits, real, capacity, drawn):
    return [
        self.route(logits[g], real[g], capacity,
                   **({"drawn": drawn[g]} if self.random else {}))
        for g in range(len(logits))]


def top2(policy, name, *, prioritized=False, second_place=0.0, threshold=None):
  return Subject(
      functools.partial(Top2Router, prioritized=prioritized,
                        second_train=policy, second_eval=policy,
                        second_place_weight=second_place),
      functools.partial(oracle_routers.top2, policy=name,
                        prioritized=prioritized),
      best_probabilities if prioritized else None, threshold,
      isinstance(policy, RandomSecond),
      dataclasses.replace(COEFS, second_place=second_place))


def left_behind(rounds):
  return Subject(
      functools.partial(NoTokenLeftBehindRouter, rounds=rounds),
      functools.partial(oracle_routers.no_token_left_behind, rounds=rounds))


SUBJECTS = {
    "switch": Subject(SwitchRouter, oracle_routers.switch),
    "switch, prioritized": Subject(
        functools.partial(SwitchRouter, prioritized=True),
        functools.partial(oracle_routers.switch, prioritized=True),
        best_probabilities),
    "top2, all": top2(AlwaysSecond(), oracle_routers.always),
    "top2, none": top2(NeverSecond(), oracle_routers.never, second_place=.5),
    "top2, threshold": top2(
        SecondAboveThreshold(.3), oracle_routers.above(.3), threshold=.3,
        second_place=1.0),
    "top2, random": top2(
        RandomSecond(.6), oracle_routers.at_random(.6), threshold=.6),
    "top2, all, prioritized": top2(
        AlwaysSecond(), oracle_routers.always, prioritized=True,
        second_place=.5),
    "top2, random, prioritized": top2(
        RandomSecond(.6), oracle_routers.at_random(.6), threshold=.6,
        prioritized=True),
    # As they are without arguments: at random in training, else all.
    "top2, by default": dataclasses.replace(
        top2(RandomSecond(), oracle_routers.at_random(.2), threshold=.2),
        make=Top2Router),
    "top2, by default, eval": dataclasses.replace(
        top2(AlwaysSecond(), oracle_routers.always), make=Top2Router),
    "left behind, 1": left_behind(1),
    "left behind, 2": left_behind(2),
    "left behind, 3": left_behind(3),
    "left behind, 99": left_behind(99),
    "expert choice": Subject(
        ExpertChoiceRouter, oracle_routers.expert_choice, probabilities,
        coefs=dataclasses.replace(COEFS, balance=0.0)),
    # Equal logits of one expert are equal probabilities, and the logits have
    # few digits: nothing is nearly equal.
    "expert choice, over tokens": Subject(
        functools.partial(ExpertChoiceRouter, softmax_over_tokens=True),
        functools.partial(
            oracle_routers.expert_choice, softmax_over_tokens=True),
        coefs=dataclasses.replace(COEFS, balance=0.0)),
}

CASES = [  # subject, size, dispatcher, mode
    ("switch", "several groups", "gather", "train"),
    ("switch", "one group", "einsum", "eval"),
    ("switch", "one expert", "gather", "train"),
    ("switch", "linear experts", "gather", "eval"),
    ("switch, prioritized", "16: several groups", "einsum", "train"),
    ("switch, prioritized", "16: capacity 1", "gather", "train"),
    ("switch, prioritized", "16: two experts", "gather", "eval"),
    ("switch, prioritized", "16: replicas", "gather", "train"),
    ("switch, prioritized", "16: more experts than tokens", "einsum", "eval"),

    ("top2, all", "several groups", "gather", "train"),
    ("top2, all", "linear experts", "einsum", "train"),
    ("top2, none", "minimum capacity", "einsum", "train"),
    ("top2, threshold", "one group", "gather", "eval"),
    ("top2, threshold", "16: two experts", "einsum", "train"),
    ("top2, random", "several groups", "einsum", "train"),
    ("top2, random, prioritized", "16: replicas", "gather", "train"),
    ("top2, by default", "capacity 1", "gather", "train"),
    ("top2, by default, eval", "more experts than tokens", "gather", "eval"),
    ("top2, all, prioritized", "16: several groups", "gather", "eval"),
    ("top2, all, prioritized", "one expert", "einsum", "train"),

    ("left behind, 1", "capacity 1", "gather", "train"),
    ("left behind, 2", "several groups", "gather", "train"),
    ("left behind, 2", "one group", "einsum", "eval"),
    ("left behind, 2", "one expert", "gather", "train"),
    ("left behind, 2", "16: two experts", "gather", "train"),
    ("left behind, 3", "replicas", "einsum", "train"),
    ("left behind, 3", "more experts than tokens", "gather", "eval"),
    ("left behind, 99", "capacity 1", "gather", "train"),

    ("expert choice", "16: several groups", "gather", "train"),
    ("expert choice", "16: one group", "einsum", "eval"),
    ("expert choice", "16: capacity 1", "gather", "train"),
    ("expert choice", "one expert", "einsum", "train"),
    ("expert choice", "16: dropless", "gather", "train"),
    ("expert choice, over tokens", "several groups", "einsum", "train"),
    ("expert choice, over tokens", "one group", "gather", "train"),
    ("expert choice, over tokens", "linear experts", "gather", "eval"),
    ("expert choice, over tokens", "groups of one token", "gather", "train"),
]
KINDS = [
    "no padding", "tail", "scattered", "first group", "all padding",
    "equal experts", "zero", "some zero", "equal tokens",
    "equal tokens, scattered", "one for all", "one for all, tail", "sure"]
DRAWS = 3


def draw(rng, size, kind):
  """Weights, tokens, padding and the gradient of the output, in float64.

  Tokens and router have so few binary digits that float32 has their logits
  exactly, as well as what goes into the relu.
  """
  x = np.round(4 * rng.normal(size=[*size.shape, MODEL])) / 4
  router = np.round(4 * rng.normal(size=[MODEL, size.experts])) / 8
  real = np.ones(size.shape)
  length = size.shape[-1]
  if "tail" in kind:
    real[:] = np.arange(length) < rng.integers(
        1, length + 1, [*size.shape[:-1], 1])
  if "scattered" in kind:
    real[:] = rng.uniform(size=size.shape) < .6
  if kind == "first group":
    real.reshape(-1)[:size.group_size] = 0
  if kind == "all padding":
    real[:] = 0
  if kind == "equal experts":
    router = router[:, rng.integers(0, 2, size.experts) % size.experts]
  if kind == "zero":
    x[:] = 0
  if kind == "some zero":
    x[rng.uniform(size=size.shape) < .4] = 0
  if "equal tokens" in kind:
    x = x.reshape(-1, MODEL)[rng.integers(0, 3, size.shape)]
  if "one for all" in kind:
    x = np.abs(x)
    router[:, rng.integers(size.experts)] = router.max(axis=1) + .25
  if kind == "sure":
    router *= 3
  weights = {"router/kernel": router}
  if not size.linear:
    weights["wi/kernel"] = np.round(
        4 * rng.normal(size=[size.experts, MODEL, HIDDEN])) / 8
  weights["wo/kernel"] = rng.normal(size=[
      size.experts, MODEL if size.linear else HIDDEN, MODEL]) / 2
  return weights, x, real, rng.normal(size=x.shape) / 2


class Watched(Router):
  """A router that also hands out, as metrics, what it decided."""

  def __init__(self, router):
    super().__init__(router.exploration)
    self.router = router
    self.num_choices = router.num_choices

  def assign(self, *args):
    raise AssertionError("the router's own is used")

  def __call__(self, x_OGSM, nonpadding_OGS, dims, context):  # noqa: N803
    routing = self.router(x_OGSM, nonpadding_OGS, dims, context)
    seen = {"expert": routing.expert_OGSK, "slot": routing.slot_OGSK,
            "weight": routing.weight_OGSK, "choice": routing.choice_OGEC,
            "drawn": stateless.uniform(x_OGSM.mesh, dims.OGS, "second_expert")}
    return dataclasses.replace(routing, metrics=routing.metrics | {
        f"seen_{name}": value for name, value in seen.items()})


def build(subject, size, dispatcher, mode):
  layer = SwitchFFN(
      num_experts=size.experts, group_size=size.group,
      hidden_size=None if size.linear else HIDDEN,
      min_capacity=size.minimum, capacity_factor_train=size.factor,
      capacity_factor_eval=size.factor, load_balancing_coef=COEFS.balance,
      router_z_coef=COEFS.z,
      router=Watched(subject.make(exploration=Argmax())),
      dispatcher=DISPATCHERS[dispatcher]())
  return BuiltLayer(
      layer, f"{size.tokens},d_model:{MODEL}", mode=mode, gradients=True)


def check_assignment(found, routes, capacity, label):
  """`found`: expert, slot, weight [G, S, K] and choice [G, E, C]."""
  _, tokens, num_choices = found["slot"].shape
  for g, routes_g in enumerate(routes):
    holders = np.full(found["choice"].shape[1:], tokens * num_choices)
    for s, choices in enumerate(routes_g):
      for k in range(num_choices):
        where = f"{label}: group {g}, token {s}, choice {k}"
        right = choices[k] if choices else None
        assert not choices or len(choices) == num_choices, where
        if right is None or right.slot is None:
          assert found["slot"][g, s, k] == capacity, where
          assert found["weight"][g, s, k] == 0, where
          continue
        assert (found["expert"][g, s, k], found["slot"][g, s, k]) == (
            right.expert, right.slot), where
        assert found["weight"][g, s, k] == pytest.approx(
            right.weight, rel=TOLERANCE, abs=1e-7), where
        holders[right.expert, right.slot] = s * num_choices + k
    np.testing.assert_array_equal(found["choice"][g], holders, err_msg=label)


def check_rates(found, logits, real, routes, by_experts, label):
  """Two metrics that follow from the assignment alone."""
  load, tokens, dropped = np.zeros(logits.shape[2]), int(real.sum()), 0
  for g, routes_g in enumerate(routes):
    for s, choices in enumerate(routes_g):
      dropped += bool(real[g, s]) and all(c.slot is None for c in choices)
      if by_experts:
        for c in choices:
          load[c.expert] += c.slot is not None
      elif real[g, s]:
        load[oracle_routers.ranking(logits[g, s])[0]] += 1
  np.testing.assert_allclose(
      found["expert_load"], load / max(1, load.sum()), atol=TOLERANCE,
      err_msg=label)
  assert found["dropped_fraction"] == pytest.approx(
      dropped / max(1, tokens), abs=TOLERANCE), label


def compare(subject, size, run, kind, seed, label):
  """One draw. None where float32 might decide otherwise, else the routes."""
  weights, x, real, dy = draw(np.random.default_rng(seed), size, kind)
  groups = [-1, size.group_size]
  x_GSM, dy_GSM = (a.reshape(*groups, MODEL) for a in (x, dy))
  real_GS = real.reshape(groups)
  logits = x_GSM @ weights["router/kernel"]
  # Only the random router has to be run before it is known what it drew.
  if not subject.random and not all(
      subject.decided(*group, None)
      for group in zip(logits, real_GS, strict=True)):
    return None
  found = run(weights, x, real, dy, step=seed % 1000)
  drawn = found["seen_drawn"].reshape(groups)
  if not all(subject.decided(*group)
             for group in zip(logits, real_GS, drawn, strict=True)):
    return None
  routes = subject.routes(logits, real_GS, size.capacity, drawn)
  check_assignment(
      {name: found[f"seen_{name}"].reshape(
          -1, *found[f"seen_{name}"].shape[2:])
       for name in ("expert", "slot", "weight", "choice")},
      routes, size.capacity, label)
  check_rates(found, logits, real_GS, routes,
              subject.make in CHOSEN_BY_EXPERTS, label)
  right = oracle_routers.gradients(
      x_GSM, weights, real_GS, routes, dy_GSM, subject.coefs)
  right = {f"d {name}": value for name, value in right.items()}
  right["y"] = oracle_routers.layer(x_GSM, weights, routes)
  right["loss"] = oracle_routers.total_loss(logits, real_GS, subject.coefs)
  right["router_z_loss"] = oracle_routers.z_loss(logits, real_GS)
  if subject.coefs.balance:
    right["load_balancing_loss"] = oracle_routers.total_loss(
        logits, real_GS, dataclasses.replace(subject.coefs, balance=1, z=0))
  else:
    assert "load_balancing_loss" not in found
  for name, value in right.items():
    np.testing.assert_allclose(
        found[name], np.reshape(value, found[name].shape), atol=TOLERANCE,
        rtol=TOLERANCE, err_msg=f"{label}: {name}")
  kept = np.array([any(c.slot is not None for c in choices)
                   for routes_g in routes for choices in routes_g])
  assert (found["y"].reshape(-1, MODEL)[~kept] == 0).all(), label
  return routes


CHOSEN_BY_EXPERTS = [
    subject.make for name, subject in SUBJECTS.items() if "choice" in name]


@pytest.mark.parametrize("name, size_name, dispatcher, mode", CASES)
def test_against_the_oracle(name, size_name, dispatcher, mode):
  subject, size = SUBJECTS[name], SIZES[size_name]
  run = build(subject, size, dispatcher, mode)
  kept = missed = 0
  for kind in KINDS:
    start = zlib.crc32(f"{name}/{size_name}/{kind}".encode()) % 10**6
    seeds, count = iter(range(start, start + 500)), 0
    while count < DRAWS:
      seed = next(seeds)
      routes = compare(subject, size, run, kind, seed,
                       f"{name}, {size_name}, {kind}, draw {seed}")
      if routes is not None:
        count += 1
        slots = [c.slot for routes_g in routes for choices in routes_g
                 for c in choices]
        kept += len(slots) - slots.count(None)
        missed += slots.count(None)
  assert kept > 0
  assert missed > 0 or size.capacity == size.group_size


@pytest.mark.parametrize("name, choices", [
    ("switch", 1), ("top2, all", 2), ("left behind, 2", 1)])
def test_decoding(name, choices):
  # All 7 tokens are one group of which none is dropped, though the factor is
  # for a capacity of 1, and all choose alike.
  size = dataclasses.replace(SIZES["capacity 1"], tokens="batch:1,length:7")
  run = BuiltLayer(
      SwitchFFN(num_experts=4, hidden_size=HIDDEN, min_capacity=1,
                capacity_factor_eval=.1,
                router=SUBJECTS[name].make(exploration=Argmax())),
      f"batch:7,d_model:{MODEL}", mode="incremental")
  for seed in range(20):
    weights, x, real, _ = draw(
        np.random.default_rng(seed), size, "one for all")
    routes = SUBJECTS[name].routes(x @ weights["router/kernel"], real, 7, None)
    assert all(sum(c.slot is not None for c in token) == choices
               for token in routes[0])
    np.testing.assert_allclose(
        run(weights, x[0])["y"], oracle_routers.layer(x, weights, routes)[0],
        atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"draw {seed}")


# The oracle against finite differences.


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", [
    "switch", "switch, prioritized", "top2, all", "top2, threshold",
    "top2, random", "top2, all, prioritized", "left behind, 3",
    "expert choice", "expert choice, over tokens"])
def test_gradients_of_the_oracle(name, linear):
  # 2 groups of 4 tokens, 3 experts with 2 slots. The objective routes anew for
  # each difference: a jump would show as a huge derivative.
  subject = SUBJECTS[name]
  rng = np.random.default_rng(1)
  x, dy = rng.normal(size=[2, 2, 4, 3])
  drawn, real = rng.uniform(size=[2, 4]), np.ones([2, 4])
  real[0, 1] = 0
  weights = {"router/kernel": rng.normal(size=[3, 3]),
             "wi/kernel": rng.normal(size=[3, 3, 4]),
             "wo/kernel": rng.normal(size=[3, 3 if linear else 4, 3])}
  if linear:
    del weights["wi/kernel"]

  def routes():
    return subject.routes(x @ weights["router/kernel"], real, 2, drawn)

  def objective():
    return (oracle_routers.layer(x, weights, routes()) * dy).sum() + (
        oracle_routers.total_loss(
            x @ weights["router/kernel"], real, subject.coefs))

  found = oracle_routers.gradients(
      x, weights, real, routes(), dy, subject.coefs)
  for key, values in {"x": x, **weights}.items():
    np.testing.assert_allclose(
        found[key], oracle.finite_differences(objective, values),
        atol=1e-7, rtol=1e-6, err_msg=key)


# One group, logits given.


def route(router, logits, *, factor=1.0, real=None, train=False):
  """Routes one group [S, E]; what it found has a leading axis of 1."""
  logits = np.asarray(logits, np.float32)
  tokens, experts = logits.shape
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = MoeDims.create(
      mtf.convert_to_shape(f"batch:1,length:{tokens},d_model:3"),
      num_experts=experts, hidden_size=1, group_size=tokens,
      capacity_factor=factor, min_capacity=1,
      num_choices=router.num_choices(experts))
  real = np.ones(tokens) if real is None else np.asarray(real)
  routing = router.route(
      mtf.import_tf_tensor(mesh, tf.constant(logits[None, None]),
                           mtf.Shape(dims.OGSE)),
      mtf.import_tf_tensor(
          mesh, tf.constant(real.astype(np.float32)[None, None]),
          mtf.Shape(dims.OGS)), dims, train)
  tensors = {"expert": routing.expert_OGSK, "slot": routing.slot_OGSK,
             "weight": routing.weight_OGSK, "choice": routing.choice_OGEC}
  lowering = lower(mesh)
  with tf.Session() as session:
    found = session.run({
        name: lowering.export_to_tf_tensor(t)
        for name, t in (tensors | routing.losses).items()})
  return {name: value[0] if name in tensors else value
          for name, value in found.items()}, dims.capacity_dim.size


def by_hand(expected):
  """The choices (expert, slot, weight) of a group as an oracle's routes."""
  return [[[oracle_routers.Choice(*c, among=[]) for c in token]
           for token in expected]]


def plain(routes):
  """What a router of the oracle says of a group, as by_hand's argument."""
  return [[(c.expert, c.slot, pytest.approx(c.weight)) for c in token]
          for token in routes]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_no_token_left_behind_by_hand(rounds):
  # 2 slots. Round 1: tokens 0 and 1 fill expert 0, token 3 goes to expert 1.
  # Round 2: tokens 2 and 4 both ask expert 1, which has one slot left. Round 3:
  # token 4 gets the first slot of expert 2, and has the weight .05.
  probs = np.array([[.6, .3, .1], [.5, .2, .3], [.7, .2, .1], [.2, .5, .3],
                    [.8, .15, .05]])
  expected = [
      [(0, 0, .6), (1, None, 0), (2, None, 0)],
      [(0, 1, .5), (2, None, 0), (1, None, 0)],
      [(0, None, 0), (1, 1, .2), (2, None, 0)],
      [(1, 0, .5), (2, None, 0), (0, None, 0)],
      [(0, None, 0), (1, None, 0), (2, 0, .05)]]
  expected = [token[:rounds] for token in expected]
  assert plain(oracle_routers.no_token_left_behind(
      np.log(probs), np.ones(5), 2, rounds)) == expected
  found, capacity = route(
      NoTokenLeftBehindRouter(Argmax(), rounds=rounds), np.log(probs),
      factor=1.25)
  assert capacity == 2
  check_assignment(found, by_hand(expected), capacity, "by hand")
  if rounds == 2:
    # Number 2 s + k of the choice; 10 is an empty slot.
    assert found["choice"][0].tolist() == [[0, 2], [6, 5], [10, 10]]
  # f = (4/5, 1/5, 0) by first choices, P = (.56, .27, .17).
  assert found["load_balancing_loss"] == pytest.approx(
      3 * (.8 * .56 + .2 * .27), abs=1e-6)


# Second gates 1/3, 7/18, 4/9 and 3/19.
TWO_OF_THREE = np.array(
    [[.6, .3, .1], [.1, .35, .55], [.5, .1, .4], [.8, .05, .15]])
# 2 slots. Tokens 0 and 2 fill expert 0, token 3 is dropped there; expert 2 has
# token 1. Then tokens 0 and 1 fill expert 1, token 2 fills expert 2, and token
# 3 is dropped again. The gates are not renormalised once more.
IN_ORDER = [
    [(0, 0, 2 / 3), (1, 0, 1 / 3)], [(2, 0, 11 / 18), (1, 1, 7 / 18)],
    [(0, 1, 5 / 9), (2, 1, 4 / 9)], [(0, None, 0), (2, None, 0)]]
# No token asks a second expert.
FIRST_ONLY = [[first, (second[0], None, 0)] for first, second in IN_ORDER]
# Only tokens 1 and 2 are above .35, so token 1 has the first slot.
ABOVE = [
    FIRST_ONLY[0], [(2, 0, 11 / 18), (1, 0, 7 / 18)], IN_ORDER[2],
    FIRST_ONLY[3]]
# In the order 3, 0, 1, 2: token 2 is the third at expert 0 and at expert 2.
SUREST_FIRST = [
    [(0, 1, 2 / 3), (1, 0, 1 / 3)], [(2, 0, 11 / 18), (1, 1, 7 / 18)],
    [(0, None, 0), (2, None, 0)], [(0, 0, 16 / 19), (2, 1, 3 / 19)]]


@pytest.mark.parametrize("policy, right, prioritized, expected", [
    (AlwaysSecond(), oracle_routers.always, False, IN_ORDER),
    (NeverSecond(), oracle_routers.never, False, FIRST_ONLY),
    (SecondAboveThreshold(.35), oracle_routers.above(.35), False, ABOVE),
    (AlwaysSecond(), oracle_routers.always, True, SUREST_FIRST)])
def test_top2_by_hand(policy, right, prioritized, expected):
  assert plain(oracle_routers.top2(
      np.log(TWO_OF_THREE), np.ones(4), 2, right, prioritized)) == expected
  router = Top2Router(Argmax(), prioritized, second_eval=policy,
                      second_place_weight=.5)
  # e^1 in all logits changes no probability, and log sum exp is 1.
  found, capacity = route(router, np.log(TWO_OF_THREE) + 1, factor=1.5)
  assert capacity == 2
  check_assignment(found, by_hand(expected), capacity, "by hand")
  # First choices: f = (3/4, 0, 1/4), P = (.5, .2, .3), 3 sum f P = 1.35.
  # Second: f = (0, 1/2, 1/2); without the first, tokens 0, 2 and 3 have all of
  # their probability at experts 1 and 2, token 1 only 7/9, as expert 2 is out:
  # 3 * 1/2 * (1 + 7/9 + 1 + 1) / 4 = 17/12.
  assert found["load_balancing_loss"] == pytest.approx(
      1.35 + .5 * 17 / 12, abs=1e-6)
  assert found["router_z_loss"] == pytest.approx(1, abs=1e-6)


def test_random_second_of_the_oracle_by_hand():
  # Of .6 the gates are 5/9, 35/54, 20/27, 5/19: only token 1 drew more. Token 3
  # finds expert 2 full.
  routes = oracle_routers.top2(
      np.log(TWO_OF_THREE), np.ones(4), 2, oracle_routers.at_random(.6),
      drawn=[.5, .7, .7, .2])
  assert plain(routes) == [
      IN_ORDER[0], FIRST_ONLY[1], IN_ORDER[2], FIRST_ONLY[3]]


@pytest.mark.parametrize("softmax_over_tokens", [False, True])
def test_expert_choice_by_hand(softmax_over_tokens):
  # 2 slots, the tokens of each expert by probability: 3, 0; 1, 0; 1, 2. With
  # the logits log p, softmax over tokens divides by the sum of the column: 2,
  # .8 and 1.2. Tokens 0 and 1 are taken twice.
  n = np.array([2, .8, 1.2]) if softmax_over_tokens else np.ones(3)
  twice = 2 if softmax_over_tokens else 1
  expected = [
      [(0, 1, .6 / n[0] / twice), (1, 1, .3 / n[1] / twice), (2, None, 0)],
      [(0, None, 0), (1, 0, .35 / n[1] / twice), (2, 0, .55 / n[2] / twice)],
      [(0, None, 0), (1, None, 0), (2, 1, .4 / n[2])],
      [(0, 0, .8 / n[0]), (1, None, 0), (2, None, 0)]]
  assert plain(oracle_routers.expert_choice(
      np.log(TWO_OF_THREE), np.ones(4), 2, softmax_over_tokens)) == expected
  found, capacity = route(
      ExpertChoiceRouter(Argmax(), softmax_over_tokens),
      np.log(TWO_OF_THREE), factor=1.5)
  check_assignment(found, by_hand(expected), capacity, "by hand")
  assert "load_balancing_loss" not in found


# Where softmax in float32 has another order than the logits.

ROUTERS = pytest.mark.parametrize("router", [
    SwitchRouter(Argmax()), SwitchRouter(Argmax(), prioritized=True),
    Top2Router(Argmax()), NoTokenLeftBehindRouter(Argmax(), rounds=3)],
    ids=["switch", "prioritized", "top2", "left behind"])


@ROUTERS
def test_equal_logits_tie(router):
  # In a softmax, exp(.75 - log sum) is computed in a SIMD packet for expert 0
  # of the last token and singly for expert 4, and comes out larger there.
  logits = np.zeros([6, 9])
  logits[5] = [.75, 0, -.25, .25, .75, .75, -.375, -2.125, .25]
  found, _ = route(router, logits, factor=9.0)
  assert found["expert"][0, 5].tolist() == [0, 4, 5][:router.num_choices(9)]


def test_equal_logits_of_an_expert_tie():
  # Expert 0 takes token 2, then the first two of tokens 0, 5 and 8, which are
  # equal. The exp of token 8 is the one that is not in a packet.
  logits = np.zeros([10, 3])
  logits[:, 0] = [.25, 0, 1.75, -1.5, 0, .25, -.5, .125, .25, -.5]
  found, capacity = route(
      ExpertChoiceRouter(Argmax(), softmax_over_tokens=True), logits)
  assert capacity == 3
  assert found["choice"][0, 0].tolist() == [2 * 3, 0 * 3, 5 * 3]


@ROUTERS
def test_experts_are_ranked_by_logits(router):
  # e^-150 and e^-200 are both 0 in float32.
  found, _ = route(router, [[-200, -150, 0], [0, -200, -150]], factor=3.0)
  k = router.num_choices(3)
  assert found["expert"][0].tolist() == [[2, 1, 0][:k], [0, 2, 1][:k]]
