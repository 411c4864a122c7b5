"""Routers on one group, worked out by hand."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import oracle_routers
from helpers.graphs import lower
from helpers.router_cases import check_assignment

from switch_mtf.dims import MoeDims
from switch_mtf.layers import dispatch
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routers import (
  AlwaysSecond,
  ExpertChoiceRouter,
  NeverSecond,
  NoTokenLeftBehindRouter,
  SecondAboveThreshold,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter

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
             "weight": routing.weight_OGSK,
             "choice": dispatch.indices(routing, dims)[1]}
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
