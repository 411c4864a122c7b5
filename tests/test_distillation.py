"""Distillation: the loss against NumPy, what a student takes over, errors."""

import types

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.configs import build
from helpers.graphs import constant, evaluate, lower
from mesh_tensorflow.transformer import transformer

from switch_mtf.distillation import loss, student_init
from switch_mtf.distillation.loss import Distillation, Teacher
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


# What a student takes over.

# The paper's students and teachers (Tables 6, 7, 8), and sizes for one CPU.
PAIRS = {
    "switch_tiny_e16": "tiny", "switch_mini_e16": "mini",
    "switch_small_e16": "small", "switch_base_e16": "t5_base",
    "switch_base_e128": "t5_base", "switch_large_e128": "t5_large",
}


def shapes(name):
  gin.clear_config()
  return {name: tuple(shape.to_integer_list)
          for name, shape in build(name, 512).items()}


@pytest.mark.usefixtures("clean_gin")
@pytest.mark.parametrize("teacher", PAIRS)
def test_all_but_experts_are_taken_over(teacher):
  student = shapes(PAIRS[teacher])
  experts = shapes(teacher)
  start = student_init.match(student, experts)
  taken = {source.variable for source in start.taken.values()}
  # Of the teacher all but experts and routers, each once.
  assert len(taken) == len(start.taken)
  assert taken == {name for name in experts if "/SwitchFFN/" not in name}
  for name, source in start.taken.items():
    assert student[name] == experts[source.variable]
    assert name.split("layer_")[-1][4:] == source.variable.split(
        "layer_")[-1][4:]
  # Fresh are the feed-forward layers in the place of experts, and they alone.
  assert all("/DenseReluDense/" in name for name in start.fresh)
  assert len(start.fresh) == sum(
      "/SwitchFFN/w" in name for name in experts)


@pytest.mark.usefixtures("clean_gin")
def test_experts_by_their_mean():
  student, teacher = shapes("small"), shapes("switch_small_e16")
  start = student_init.match(student, teacher, student_init.MEAN)
  assert not start.fresh
  # The second block of the student is the second half of the teacher's first.
  ffn = "encoder/block_001/layer_001/DenseReluDense/wi/kernel"
  assert start.taken[ffn] == student_init.Source(
      "encoder/block_000/layer_003/SwitchFFN/wi/kernel", student_init.MEAN)


def test_places_by_hand():
  # Blocks of two and of four sublayers: (1, 1) is (0, 3).
  student = {"decoder/block_000/layer_000/a": (1,),
             "decoder/block_001/layer_001/DenseReluDense/wi/kernel": (2, 3),
             "shared/embedding": (9, 2), "decoder/rms_norm/scale": (2,)}
  teacher = {"decoder/block_000/layer_000/a": (1,),
             "decoder/block_000/layer_003/SwitchFFN/wi/kernel": (8, 2, 3),
             "shared/embedding": (8, 2), "decoder/rms_norm/scale": (2,)}
  start = student_init.match(student, teacher, student_init.MOST_USED)
  assert start.taken == {
      "decoder/block_000/layer_000/a": student_init.Source(
          "decoder/block_000/layer_000/a"),
      "decoder/block_001/layer_001/DenseReluDense/wi/kernel":
          student_init.Source(
              "decoder/block_000/layer_003/SwitchFFN/wi/kernel",
              student_init.MOST_USED),
      "decoder/rms_norm/scale": student_init.Source("decoder/rms_norm/scale")}
  assert start.fresh == {"shared/embedding": (
      "[9, 2] in the student, [8, 2] in the teacher's shared/embedding")}


def test_a_shorter_student_takes_what_stands_outside_its_layers():
  start = student_init.match(
      {"encoder/block_000/layer_000/a": (1,), "shared/embedding": (8, 2)},
      {"encoder/block_000/layer_000/a": (1,),
       "encoder/block_001/layer_000/a": (1,), "shared/embedding": (8, 2)})
  assert set(start.taken) == {"shared/embedding"}
  assert start.fresh == {"encoder/block_000/layer_000/a": (
      "1 sublayers in the student's encoder, 2 in the teacher's")}
  assert student_init.lines(start) == [
      "a new student takes 1 of 2 variables from the teacher",
      "fresh: encoder/block_000/layer_000/a (1 sublayers in the student's "
      "encoder, 2 in the teacher's)"]


def test_most_used_expert_is_read(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(
      f'\n{{"kind": "train", "step": {step}, "loss": 1.0, '
      f'"encoder/block_000/layer_003/expert_load": {load}}}'
      for step, load in ((100, [.7, .2, .1]), (200, [.2, .3, .5]))))
  assert loss.most_used_experts(str(tmp_path)) == {
      "encoder/block_000/layer_003": 2}


# Errors.


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


def test_nothing_fits():
  with pytest.raises(ValueError, match=(
      r"fitting=0 of 1; shared/embedding: \[9, 2\] in the student, \[8, 2\] in "
      r".*distillation.copy_weights = False")):
    student_init.match({"shared/embedding": (9, 2)},
                       {"shared/embedding": (8, 2)})


def test_no_record_of_experts(tmp_path):
  with pytest.raises(ValueError, match=(
      "must have recorded .*model_dir=.*distillation.replaced")):
    loss.most_used_experts(str(tmp_path))


def test_teacher_must_be_there(tmp_path):
  with pytest.raises(ValueError, match=(
      "gin file must be there, with config=.*operative_config.gin.*"
      "distill_from.checkpoint")):
    loss.distill_from(str(tmp_path))
  with pytest.raises(ValueError, match=(
      "checkpoint must be there, with .*distill_from.checkpoint")):
    Teacher(str(tmp_path), None).trained()
