import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import constant, evaluate, lower

from switch_mtf.dims import MoeDims
from switch_mtf.layers.losses import load_balancing_loss

TOLERANCE = 1e-6  # float32, sums of a few numbers


def run(mesh, probs, real):
  """The loss of probabilities [G, S, E], and its gradient by them."""
  probs = np.asarray(probs, np.float32)[None]
  real = np.asarray(real, np.float32)[None]
  _, groups, tokens, experts = probs.shape
  dims = MoeDims.create(
      mtf.convert_to_shape(f"batch:{groups},length:{tokens},d_model:1"),
      num_experts=experts, hidden_size=1, group_size=tokens,
      capacity_factor=1.0, min_capacity=1)
  probs_OGSE = constant(mesh, probs, dims.OGSE)
  chosen_OGSE = constant(
      mesh, np.eye(experts, dtype=np.float32)[probs.argmax(-1)], dims.OGSE)
  loss = load_balancing_loss(
      probs_OGSE, chosen_OGSE, constant(mesh, real, dims.OGS), dims)
  assert loss.shape.dims == []
  gradient, = mtf.gradients([loss], [probs_OGSE])
  loss, gradient = evaluate(lower(mesh), [loss, gradient])
  return loss, gradient[0]


TWO_GROUPS = [[[.8, .2], [.6, .4], [.3, .7]],
              [[.9, .1], [.6, .4], [.1, .9]]]  # the last is padding
TWO_GROUPS_REAL = [[1, 1, 1], [1, 1, 0]]


def test_by_hand(new_mesh):
  # Equations 4 to 6, N = 2.
  # Group 0: f = (2/3, 1/3), P = (1.7/3, 1.3/3),
  #          2 * (2/3 * 17/30 + 1/3 * 13/30) = 2 * 47/90 = 47/45.
  # Group 1, two real tokens: f = (1, 0), P = (1.5/2, .5/2), 2 * .75 = 3/2.
  # Mean: (47/45 + 3/2) / 2 = 229/180.
  loss, _ = run(new_mesh(), TWO_GROUPS, TWO_GROUPS_REAL)
  assert loss == pytest.approx(229 / 180, abs=TOLERANCE)


def test_gradient_by_hand(new_mesh):
  # f is not differentiable: d loss / d p_i(x) = N f_i / T / groups for a real
  # x. Group 0: 2 * (2/3, 1/3) / 3 / 2 = (2/9, 1/9). Group 1: 2 * (1, 0) / 2 / 2
  # = (1/2, 0). Padding: 0.
  _, gradient = run(new_mesh(), TWO_GROUPS, TWO_GROUPS_REAL)
  np.testing.assert_allclose(
      gradient, [[[2 / 9, 1 / 9]] * 3, [[1 / 2, 0]] * 2 + [[0, 0]]],
      atol=TOLERANCE)


def test_padding_is_in_no_mean(new_mesh):
  # Whatever the router says of padding, the loss is that of the two real
  # tokens: 3/2, as in group 1 above.
  for padding in ([.1, .9], [.9, .1], [.5, .5]):
    loss, _ = run(new_mesh(), [[[.9, .1], [.6, .4], padding]], [[1, 1, 0]])
    assert loss == pytest.approx(3 / 2, abs=TOLERANCE)


def test_padding_may_stand_anywhere(new_mesh):
  loss, _ = run(new_mesh(), [[[.1, .9], [.9, .1], [.6, .4]]], [[0, 1, 1]])
  assert loss == pytest.approx(3 / 2, abs=TOLERANCE)


def test_groups_are_averaged_alike_however_many_tokens_they_hold(new_mesh):
  # Group 0: one real token, all its probability on its expert: 2 * 1 * 1 = 2.
  # Group 1: f = (2/3, 1/3) and P = (1/2, 1/2), about: 2 * 1/2 = 1. Mean 3/2;
  # weighted by tokens it would be 5/4.
  loss, _ = run(new_mesh(), [[[1, 0], [1, 0], [1, 0]],
                             [[.51, .49], [.51, .49], [.48, .52]]],
                [[1, 0, 0], [1, 1, 1]])
  assert loss == pytest.approx(3 / 2, abs=TOLERANCE)


def test_group_of_padding_is_ignored(new_mesh):
  # 47/45 is group 0 of the first test; averaged with a 0 it would be half.
  loss, gradient = run(new_mesh(), TWO_GROUPS, [[1, 1, 1], [0, 0, 0]])
  assert loss == pytest.approx(47 / 45, abs=TOLERANCE)
  assert not gradient[1].any()


def test_nothing_but_padding(new_mesh):
  loss, gradient = run(new_mesh(), TWO_GROUPS, np.zeros([2, 3]))
  assert loss == 0
  assert not gradient.any()


@pytest.mark.parametrize("experts", [1, 2, 8, 64])
def test_uniform_router_is_1(new_mesh, experts):
  # P_i = 1/N, sum f_i = 1: N * 1/N = 1, whatever f (section 2.2).
  probs = np.full([2, 5, experts], 1 / experts)
  loss, _ = run(new_mesh(), probs, np.ones([2, 5]))
  assert loss == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("experts", [1, 2, 8, 64])
def test_spread_evenly_is_1(new_mesh, experts):
  # Each expert has one token, which is sure: f_i = P_i = 1/N, N * N / N^2 = 1.
  loss, _ = run(new_mesh(), np.eye(experts)[None], np.ones([1, experts]))
  assert loss == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("experts", [1, 2, 8, 64])
def test_collapsed_router_is_the_number_of_experts(new_mesh, experts):
  # f_0 = P_0 = 1: N * 1.
  probs = np.zeros([3, 4, experts])
  probs[..., 0] = 1
  loss, _ = run(new_mesh(), probs, np.ones([3, 4]))
  assert loss == pytest.approx(experts, abs=TOLERANCE * experts)


@pytest.mark.parametrize("wrong", ["probs", "chosen", "nonpadding"])
def test_other_dimensions_are_refused(new_mesh, wrong):
  # Mesh-TF would broadcast by name instead.
  mesh = new_mesh()
  dims = MoeDims.create(
      mtf.convert_to_shape("batch:2,length:3,d_model:1"), num_experts=2,
      hidden_size=1, group_size=3, capacity_factor=1.0, min_capacity=1)
  shapes = {"probs": dims.OGSE, "chosen": dims.OGSE, "nonpadding": dims.OGS}
  shapes[wrong] = shapes[wrong][1:]
  with pytest.raises(ValueError, match=f"^load_balancing_loss {wrong}: "):
    load_balancing_loss(*(mtf.zeros(mesh, s) for s in shapes.values()), dims)
