"""Random cases for `oracle_routers.py`, and the comparison with the layer."""

import dataclasses
import functools

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers import oracle, oracle_routers
from helpers.graphs import BuiltLayer, Watched
from helpers.oracle_routers import Coefficients

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
from switch_mtf.layers.routing import SwitchRouter
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
