"""The loss of a distillation against NumPy, and its options."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, lower
from mesh_tensorflow.transformer import transformer

from switch_mtf.distillation.loss import Distillation
from switch_mtf.kernels.embedding import cross_entropy_from_ids

BATCH, LENGTH, VOCAB, STEP = 2, 5, 7, 10
TARGETS = np.array([[3, 1, 6, 2, 0], [5, 5, 1, 0, 0]])  # 0 is padding


def make(z_loss=0.0, loss_fn=cross_entropy_from_ids, **options):
  """A Distillation of which only the loss is used."""
  decoder = transformer.Unitransformer(
      transformer.LayerStack(layers=[]), d_model=4, input_vocab_size=VOCAB,
      output_vocab_size=VOCAB, autoregressive=True, max_length=LENGTH,
      vocab_divisor=1, z_loss=z_loss, loss_fn=loss_fn)
  return Distillation(types.SimpleNamespace(decoder=decoder),
                      None, {}, **options)


def loss_and_gradient(student, teacher, **options):
  """Of the graph, at step `STEP`: by the student's logits."""
  made = make(**options)
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = [mtf.Dimension("batch", BATCH), mtf.Dimension("length", LENGTH)]
  vocab = mtf.Dimension("vocab", VOCAB)
  s, t = (constant(mesh, x.astype(np.float32), [*dims, vocab])
          for x in (student, teacher))
  context = types.SimpleNamespace(
      train=True, num_microbatches=1, activation_dtype=tf.float32,
      model=made.student.decoder)
  tf.train.create_global_step()
  loss = made._mixed_loss(t)(
      made.student.decoder, context, s,
      constant(mesh, TARGETS.astype(np.int32), dims), vocab)
  gradient, = mtf.gradients([loss], [s])
  return evaluate(lower(mesh), [loss, gradient], {"global_step": STEP})


def log_sum_exp(x):
  return np.log(np.exp(x).sum(-1, keepdims=True))


def expected(student, teacher, fraction, temperature, z=0.0):
  """The loss and its gradient by the student's logits, in NumPy.

  hard is -log p(target), soft -sum over the vocabulary of q log p with both
  sets of logits divided by the temperature; each with z log^2 of its partition
  function. Means over all positions, of which padding adds nothing.
  """
  real = (TARGETS > 0)[..., None] / TARGETS.size
  one_hot = np.eye(VOCAB)[TARGETS]
  loss, gradient = 0.0, 0.0
  for weight, t, q in (
      (1 - fraction, 1.0, one_hot),
      (fraction * temperature**2, temperature,
       np.exp(teacher / temperature - log_sum_exp(teacher / temperature)))):
    log_z = log_sum_exp(student / t)
    p = np.exp(student / t - log_z)
    each = log_z - (q * student / t).sum(-1, keepdims=True) + z * log_z**2
    loss += weight * (real * each).sum()
    gradient += weight * real * (p - q + 2 * z * log_z * p) / t
  return loss, gradient


@pytest.mark.parametrize("fraction, temperature, z", [
    (0.25, 1.0, 0.0), (0.25, 3.0, 0.0), (1.0, 2.0, 0.0), (0.25, 2.0, 0.01)])
@pytest.mark.parametrize("loss_fn", [cross_entropy_from_ids, None])
def test_loss_and_gradient(fraction, temperature, z, loss_fn):
  student, teacher = np.random.default_rng(0).normal(
      scale=2, size=[2, BATCH, LENGTH, VOCAB])
  loss, gradient = loss_and_gradient(
      student, teacher, fraction_soft=fraction, temperature=temperature,
      z_loss=z, loss_fn=loss_fn)
  right = expected(student, teacher, fraction, temperature, z)
  np.testing.assert_allclose(loss, right[0], rtol=1e-6)
  np.testing.assert_allclose(gradient, right[1], atol=1e-6)


@pytest.mark.parametrize("start, fraction", [(STEP, 0.5), (STEP + 1, 0.0)])
def test_start_step(start, fraction):
  student, teacher = np.random.default_rng(1).normal(
      size=[2, BATCH, LENGTH, VOCAB])
  loss, _ = loss_and_gradient(
      student, teacher, fraction_soft=0.5, start_step=start)
  np.testing.assert_allclose(
      loss, expected(student, teacher, fraction, 1.0)[0], rtol=1e-6)


@pytest.mark.parametrize("options, text", [
    (dict(temperature=0.0), "temperature must be a finite number, greater than "
     "0.0, with temperature=0.0"),
    (dict(fraction_soft=1.5), "fraction_soft must be .* at most 1.0"),
    (dict(fraction_soft=-0.1), "fraction_soft must be .* at least 0.0"),
    (dict(start_step=-1), "start_step must be a whole number"),
    (dict(copy_weights="yes"), "copy_weights must be True or False"),
    (dict(replaced="mean"), "replaced must be one of .*mean_expert"),
])
def test_options_are_checked(options, text):
  with pytest.raises(ValueError, match=f"distillation: {text}"):
    make(**options)
