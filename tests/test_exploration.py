"""Appendix C: what a router's noise is, and who sees it."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
from helpers.graphs import BuiltLayer, constant, evaluate, lower, random_weights

from switch_mtf.dims import MoeDims
from switch_mtf.layers.exploration import (
  Argmax,
  InputDropout,
  InputJitter,
  SampleSoftmax,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

TOKENS, MODEL, EXPERTS = 4096, 4, 3
LOGITS = np.float32([1, 0, -1])
ALL = {"argmax": Argmax(), "sample": SampleSoftmax(),
       "input dropout": InputDropout(.5), "input jitter": InputJitter(.5)}


def make_dims():
  return MoeDims.create(
      mtf.convert_to_shape(f"batch:1,length:{TOKENS},d_model:{MODEL}"),
      num_experts=EXPERTS, hidden_size=1, group_size=TOKENS,
      capacity_factor=None, min_capacity=1)


def route(new_mesh, exploration, train=True):
  mesh, dims = new_mesh(), make_dims()
  logits = constant(mesh, np.broadcast_to(
      LOGITS, [1, 1, TOKENS, EXPERTS]).copy(), dims.OGSE)
  routing = SwitchRouter(exploration).route(
      logits, mtf.ones(mesh, mtf.Shape(dims.OGS)), dims, train)
  expert, weight = evaluate(
      lower(mesh), [routing.expert_OGSK, routing.weight_OGSK])
  return expert.reshape(-1), weight.reshape(-1)


def softmax(logits):
  return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("temperature", [.5, 1.0, 3.0])
def test_sample_is_a_draw_from_the_softmax(new_mesh, temperature):
  # The share of n draws is p up to 4 deviations sqrt(p (1 - p) / n).
  expert, weight = route(new_mesh, SampleSoftmax(temperature))
  p = softmax(LOGITS / temperature)
  share = np.bincount(expert, minlength=EXPERTS) / TOKENS
  assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / TOKENS)).all()
  # The weight knows no temperature.
  np.testing.assert_allclose(weight, softmax(LOGITS)[expert], rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in ALL if n != "sample"])
def test_others_take_the_most_probable(new_mesh, name):
  expert, _ = route(new_mesh, ALL[name])
  assert (expert == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_evaluation_has_no_noise(new_mesh, name):
  expert, weight = route(new_mesh, ALL[name], train=False)
  assert (expert == 0).all()
  np.testing.assert_allclose(weight, softmax(LOGITS)[0], rtol=1e-5)


def perturb(new_mesh, exploration):
  mesh, dims = new_mesh(), make_dims()
  x = exploration.perturb(mtf.ones(mesh, mtf.Shape(dims.OGSM)), dims)
  x, = evaluate(lower(mesh), [x])
  return x.reshape(-1)


def test_input_dropout(new_mesh):
  # 0 with probability .3, else 1 / .7, each feature of each token for itself.
  x = perturb(new_mesh, InputDropout(.3))
  np.testing.assert_allclose(x[x != 0], 1 / .7, rtol=1e-6)
  assert abs((x == 0).mean() - .3) < 4 * np.sqrt(.3 * .7 / x.size)


def test_input_jitter(new_mesh):
  # Uniform in [.9, 1.1]: mean 1, deviation .2 / sqrt(12).
  x = perturb(new_mesh, InputJitter(.1))
  assert .9 <= x.min() < .901 and 1.099 < x.max() <= 1.1
  deviation = .2 / np.sqrt(12)
  assert abs(x.mean() - 1) < 4 * deviation / np.sqrt(x.size)
  assert x.std() == pytest.approx(deviation, rel=.02)


@pytest.mark.parametrize("name", ["argmax", "sample"])
def test_others_leave_the_input(new_mesh, name):
  assert (perturb(new_mesh, ALL[name]) == 1).all()


@pytest.mark.parametrize("name", ALL)
def test_experts_do_not_see_it(name):
  # One expert has probability 1 whatever the router sees: y = E(x).
  rng = np.random.default_rng(0)
  weights = random_weights(rng, model=MODEL, experts=1)
  x = rng.normal(size=[2, 4, MODEL])

  def run(exploration):
    layer = SwitchFFN(num_experts=1, hidden_size=8, group_size=8,
                      capacity_factor_train=1.0,
                      router=SwitchRouter(exploration))
    return BuiltLayer(layer, f"batch:2,length:4,d_model:{MODEL}")(
        weights, x)["y"]

  np.testing.assert_array_equal(run(ALL[name]), run(Argmax()))


@pytest.mark.parametrize("cls, name, value", [
    (SampleSoftmax, "temperature", 0), (InputDropout, "rate", 1),
    (InputJitter, "epsilon", -.1)])
def test_out_of_range(cls, name, value):
  who = cls.__name__
  with pytest.raises(ValueError, match=rf"^{who}: {name} must be a finite "
                     rf"number, .* with {name}={value}\. Set {who}\.{name}\."):
    cls(**{name: value})
