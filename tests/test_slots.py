"""Who gets a slot, by hand: in order, by priority, by the experts' scores."""

import dataclasses

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import constant, evaluate, lower

from switch_mtf.dims import MoeDims
from switch_mtf.layers.slots import fill_slots, rank_tokens


def make_dims(tokens, experts, capacity, choices=1):
  dims = MoeDims.create(
      mtf.convert_to_shape(f"batch:1,length:{tokens},d_model:1"),
      num_experts=experts, hidden_size=1, group_size=tokens,
      capacity_factor=1.0, min_capacity=1, num_choices=choices)
  return dataclasses.replace(
      dims, capacity_dim=mtf.Dimension("expert_capacity", capacity))


def filled(mesh, expert, capacity, *, experts=2, asks=None, priority=None,
           once=False):
  """The slots [S][K] of one group."""
  expert = np.int32(expert)
  dims = make_dims(len(expert), experts, capacity, expert.shape[1])
  asks = np.ones(expert.shape) if asks is None else asks
  if priority is not None:
    priority = constant(mesh, np.float32(priority)[None, None], dims.OGS)
  slot = fill_slots(
      constant(mesh, expert[None, None], dims.OGSK),
      constant(mesh, np.float32(asks)[None, None], dims.OGSK), dims,
      priority_OGS=priority, once=once)
  found, = evaluate(lower(mesh), [slot])
  return found[0, 0].tolist()


def test_the_first_tokens_get_the_slots(new_mesh):
  # Expert 0 is asked by tokens 0, 1, 3 and has two slots; 2 means none.
  assert filled(new_mesh(), [[0], [0], [1], [0]], 2) == [[0], [1], [0], [2]]


def test_who_does_not_ask_takes_no_slot(new_mesh):
  assert filled(new_mesh(), [[0], [0], [0]], 2,
                asks=[[0], [1], [1]]) == [[2], [0], [1]]


def test_the_largest_priority_is_served_first(new_mesh):
  # Tokens 2 and 1 come before token 0; equal priorities go by position.
  assert filled(new_mesh(), [[0], [0], [0]], 2, priority=[1, 2, 3]) == [
      [2], [1], [0]]
  assert filled(new_mesh(), [[0], [0], [0]], 2, priority=[5, 5, 5]) == [
      [0], [1], [2]]


def test_all_first_choices_come_before_second_ones(new_mesh):
  # One slot each. Token 1's first choice takes expert 1 before the second
  # choice of token 0 asks.
  assert filled(new_mesh(), [[0, 1], [1, 0]], 1) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("once, second", [(False, 0), (True, 2)])
def test_a_token_that_has_a_slot_may_ask_again(new_mesh, once, second):
  assert filled(new_mesh(), [[0, 1]], 2, once=once) == [[0, second]]


def test_experts_take_the_tokens_of_highest_score(new_mesh):
  # Expert 0 ranks tokens 2, 0, 1 and takes two; expert 1 has equal scores, of
  # which the first counts, and token 3 is padding.
  mesh, dims = new_mesh(), make_dims(4, 2, 2, choices=2)
  slot = rank_tokens(
      constant(mesh, np.float32([[[[3, 1], [2, 1], [4, 1], [9, 9]]]]),
               dims.OGSE),
      constant(mesh, np.float32([[[1, 1, 1, 0]]]), dims.OGS), dims)
  found, = evaluate(lower(mesh), [slot])
  assert found[0, 0].tolist() == [[1, 0], [2, 1], [0, 2], [2, 2]]
