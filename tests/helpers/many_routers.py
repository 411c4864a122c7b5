"""Every kind of router, for tests of what holds for each of them."""

import functools

import numpy as np
from hypothesis import settings

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

# Each does in its own way what the others do; for all sizes and dispatchers.
DIFFERENT = [
    "switch", "switch, prioritized", "top 2, all", "top 2, random, prioritized",
    "left behind, 3", "expert choice", "expert choice, over tokens"]


def repeatedly(count):
  """Settings: the same `count` draws each time, however long they take."""
  return settings(max_examples=count, deadline=None, derandomize=True)


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
