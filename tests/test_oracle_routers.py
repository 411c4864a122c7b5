"""Each router against a reading of the paper in NumPy, on random cases."""

import dataclasses
import zlib

import numpy as np
import pytest
from helpers import oracle, oracle_routers
from helpers.graphs import BuiltLayer
from helpers.router_cases import (
  CASES,
  DRAWS,
  HIDDEN,
  KINDS,
  MODEL,
  SIZES,
  SUBJECTS,
  TOLERANCE,
  build,
  compare,
  draw,
)

from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.switch_ffn import SwitchFFN


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
