"""Distillation of a tiny Switch model, in whole runs and graph by graph."""

import shutil
import subprocess
import sys

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.configs import parse
from helpers.graphs import ROOT, constant, lower
from helpers.runs import (
  STUDENT,
  losses,
  run,
  same_weights,
  student_flags,
  succeed,
  weights,
)
from mesh_tensorflow.transformer import utils

import tasks  # noqa: F401  (registers cache_dir, which a teacher's gin binds)
from switch_mtf.checkpoints import plain_t5
from switch_mtf.distillation import student_init
from switch_mtf.training import metrics

TRAIN, EVAL = tf.estimator.ModeKeys.TRAIN, tf.estimator.ModeKeys.EVAL
BATCH, INPUTS, TARGETS, VOCAB = 4, 32, 16, 1100


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory):
  model_dir = tmp_path_factory.mktemp("runs") / "student"
  return model_dir, succeed(model_dir, *student_flags(teacher))


def trained_weights(model_dir):
  return {name: value for name, value in weights(model_dir).items()
          if "_slot_" not in name and name != "global_step"}


def test_checkpoints_hold_the_student_alone(distilled):
  names = weights(distilled[0])
  assert "encoder/block_000/layer_001/DenseReluDense/wi/kernel" in names
  assert not [n for n in names if "teacher" in n or "Switch" in n]


def test_new_students_are_told_what_they_take(distilled):
  lines = [line for line in distilled[1].stderr.splitlines()
           if line.startswith("distillation:")]
  assert lines[0].endswith(
      "a new student takes 22 of 26 variables from the teacher")
  assert all("the teacher has experts here" in line for line in lines[1:])


@pytest.mark.parametrize("replaced", student_init.WAYS)
def test_student_starts_as_its_teacher(teacher, tmp_path, replaced):
  # At a learning rate of 0 it stays as it starts.
  succeed(tmp_path, *student_flags(
      teacher, "train_steps = 2", "learning_rate = 0.0",
      f"distillation.replaced = '{replaced}'"))
  found, right = trained_weights(tmp_path), trained_weights(teacher)
  shared = found.keys() & right.keys()
  assert shared == {name for name in right if "SwitchFFN" not in name}
  assert all(np.array_equal(found[n], right[n]) for n in shared)
  used = metrics.read(str(teacher), "train")[-1]
  for name in found.keys() - shared:
    experts = right[name.replace("DenseReluDense", "SwitchFFN")]
    load = used[f"{name.split('/DenseReluDense')[0]}/expert_load"]
    candidates = {student_init.MEAN: experts.mean(axis=0),
                  student_init.MOST_USED: experts[np.argmax(load)]}
    for way, value in candidates.items():
      assert np.allclose(found[name], value, atol=1e-7) == (way == replaced)


def test_a_student_can_be_a_smaller_switch_model(teacher, tmp_path):
  stderr = succeed(
      tmp_path, "--gin_file=tests/gin/tiny.gin",
      *student_flags(teacher, "num_experts = 2", "train_steps = 2",
             "learning_rate = 0.0", student="gin/runs/distill.gin")).stderr
  found, right = trained_weights(tmp_path), trained_weights(teacher)
  assert found.keys() == right.keys()
  # The routers and kernels of two experts cannot come from those of four.
  fresh = {name for name in found if "SwitchFFN" in name}
  assert {name for name in found
          if found[name].shape != right[name].shape} == fresh
  assert all(np.array_equal(found[n], right[n]) for n in found.keys() - fresh)
  for name in fresh:
    assert (f"fresh: {name} ({list(found[name].shape)} in the student, "
            f"{list(right[name].shape)} in the teacher's") in stderr


def test_interrupted_run_goes_on_as_if_it_had_not_been(
    distilled, teacher, tmp_path):
  for steps in (2, 4):
    succeed(tmp_path, *student_flags(teacher, f"train_steps = {steps}",
                             "utils.run.total_run_steps = 4"))
  assert losses(tmp_path) == losses(distilled[0])
  assert same_weights(weights(tmp_path), weights(distilled[0]))


def test_student_is_evaluated_without_its_teacher(teacher, tmp_path):
  moved = tmp_path / "teacher"
  shutil.copytree(teacher, moved)
  succeed(tmp_path / "student", *student_flags(moved))
  shutil.rmtree(moved)
  succeed(tmp_path / "student",
          f"--gin_file={tmp_path}/student/operative_config.gin",
          "--gin_file=gin/runs/perplexity_eval.gin",
          "--gin_param=perplexity_eval_steps = 1")
  assert metrics.read(str(tmp_path / "student"), "eval")
  speed, = metrics.read(str(tmp_path / "student"), "eval_speed")[-1:]
  assert speed["step"] == 4 and speed["tokens_per_second"] > 0


# T5's evaluation wants tasks that have lengths of their own.
TASK = """
import seqio, tensorflow as tf
from t5.evaluation import metrics
from tasks import vocabularies
lines = [("call " + word, word) for word in ("me", "the nation", "of", "whale")]
def examples(split, shuffle_files=False, seed=None):
  return tf.data.Dataset.from_tensor_slices(
      {"inputs": [a for a, _ in lines], "targets": [b for _, b in lines]})
feature = seqio.Feature(vocabularies.SMALL_1K)
seqio.TaskRegistry.add(
    "toy", source=seqio.FunctionDataSource(examples, ["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize,
                   seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    metric_fns=[metrics.rouge])
"""
# Without our fixes mesh_tensorflow cannot be imported with this TensorFlow. Of
# this project's layers and gin files nothing is used.
T5 = """
import sys
from switch_mtf.upstream import fixes
import seqio, tensorflow.compat.v1 as tf
tf.disable_v2_behavior()
fixes.use_resource_variables()
import t5.models, toy
model_dir, inputs, outputs = sys.argv[1:]
def model():
  return t5.models.MtfModel(
      model_dir, tpu=None, batch_size=4,
      sequence_length={"inputs": 32, "targets": 16},
      extra_gin_bindings=["Bitransformer.decode.temperature = 0.0"])
model().eval("toy", checkpoint_steps=-1)
model().predict(inputs, outputs, checkpoint_steps=-1, temperature=0.0,
                vocabulary=toy.feature.vocabulary)
"""


def scores(model_dir):
  """Tag -> value, of T5's evaluation."""
  return {v.tag: v.simple_value
          for path in (model_dir / "validation_eval").glob("events*")
          for event in tf.train.summary_iterator(str(path))
          for v in event.summary.value}


def test_student_is_used_by_t5_alone(distilled, tmp_path, monkeypatch):
  model_dir, _ = distilled
  (tmp_path / "toy.py").write_text(TASK)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
  plain = tmp_path / "plain"
  plain_t5.write(str(model_dir), str(plain))
  (plain / "validation_eval").mkdir()  # T5 makes none on a local disk
  assert "switch_mtf" not in (plain / "operative_config.gin").read_text()
  inputs = tmp_path / "inputs"
  inputs.write_text("The <extra_id_0> of the nation\nCall <extra_id_0>\n" * 2)
  succeed(model_dir, f"--gin_file={model_dir}/operative_config.gin",
          "--gin_file=gin/runs/eval.gin", "--gin_param=eval_batch_size = 4",
          "--gin_param=MIXTURE_NAME = 'toy'", "--module_import=toy",
          "--gin_param=eval_checkpoint_step = -1", forked=False)
  succeed(model_dir, f"--gin_file={model_dir}/operative_config.gin",
          "--gin_file=gin/runs/infer.gin", "--gin_file=greedy_decode.gin",
          f"--gin_param=input_filename = '{inputs}'",
          f"--gin_param=output_filename = '{tmp_path}/ours'")
  done = subprocess.run(
      [sys.executable, "-c", T5, plain, inputs, tmp_path / "t5s"], cwd=ROOT,
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert scores(plain) and scores(plain) == scores(model_dir)
  ours, theirs = ((tmp_path / f"{name}-4").read_text()
                  for name in ("ours", "t5s"))
  assert ours == theirs


@pytest.fixture
def batch():
  """Inputs and targets, some of them padding."""
  rng = np.random.default_rng(0)
  inputs, targets = (rng.integers(2, VOCAB - 100, [BATCH, length])
                     for length in (INPUTS, TARGETS))
  inputs[0, 20:] = targets[0, 9:] = 0
  return inputs.astype(np.int32), targets.astype(np.int32)


def mesh_tensors(batch):
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dim = mtf.Dimension("batch", BATCH)
  return mesh, [constant(mesh, ids, [dim, mtf.Dimension("length", length)])
                for ids, length in zip(batch, (INPUTS, TARGETS), strict=True)]


def model(kind):
  return utils.build_model(
      kind, VOCAB, VOCAB, mtf.convert_to_layout_rules(""),
      mtf.convert_to_shape(""))


def distillation(teacher):
  parse(STUDENT)
  gin.bind_parameter("distill_from.checkpoint", str(teacher))
  return model("bi_student_teacher")


@pytest.mark.usefixtures("clean_gin")
def test_teacher_says_what_it_says_in_its_evaluation(teacher, batch):
  mesh, tensors = mesh_tensors(batch)
  logits = distillation(teacher).teacher_logits(
      *tensors, variable_dtype=mtf.VariableDType(tf.float32))
  found = restored(teacher, mesh, logits, "teacher/")
  gin.clear_config()
  with tf.Graph().as_default():
    gin.parse_config_file(str(teacher / "operative_config.gin"))
    mesh, tensors = mesh_tensors(batch)
    logits, _ = model("bitransformer").call_simple(
        *tensors, compute_loss=False, mode=EVAL,
        variable_dtype=mtf.VariableDType(tf.float32))
    np.testing.assert_array_equal(found, restored(teacher, mesh, logits, ""))


def restored(model_dir, mesh, tensor, scope):
  """A tensor's value with the weights of a run, in a scope of the graph."""
  lowering = lower(mesh)
  tf.train.init_from_checkpoint(
      tf.train.latest_checkpoint(str(model_dir)), {
          v.op.name.removeprefix(scope): v for v in tf.global_variables()})
  exported = lowering.export_to_tf_tensor(tensor)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.run(lowering.copy_masters_to_slices())
    return session.run(exported)


@pytest.mark.usefixtures("clean_gin")
def test_teacher_is_not_trained(teacher, batch):
  made = distillation(teacher)
  mesh, tensors = mesh_tensors(batch)
  tf.train.create_global_step()
  _, loss = made.call_simple(
      *tensors, compute_loss=True, mode=TRAIN,
      variable_dtype=mtf.VariableDType(tf.float32))
  trained = mesh.graph.trainable_variables
  updates = mtf.optimize.AdafactorOptimizer(learning_rate=0.1).apply_grads(
      mtf.gradients([loss], [v.outputs[0] for v in trained]), trained)
  lowering = lower(mesh)
  step = tf.group([lowering.lowered_operation(op) for op in updates])
  made.initialize()
  assert not [v for v in tf.global_variables() if "teacher" in v.op.name]
  local = {v.op.name: v for v in tf.local_variables()}
  with tf.Session() as session:
    session.run([tf.global_variables_initializer(),
                 tf.local_variables_initializer()])
    session.run(lowering.copy_masters_to_slices())
    student = lowering.export_to_tf_tensor(trained[0].outputs[0])
    before = session.run(student)
    for _ in range(3):
      session.run(step)
    after = session.run(student)
    session.run(lowering.copy_slices_to_masters())
    found = session.run(local)
  assert not np.array_equal(before, after)
  right = trained_weights(teacher)
  assert {name.removeprefix("teacher/") for name in found} == set(right)
  for name, value in found.items():
    np.testing.assert_array_equal(value, right[name.removeprefix("teacher/")])


def test_bad_input_is_explained(teacher, tmp_path):
  for params, text in (
      ((f"distill_from.checkpoint = '{tmp_path}'",),
       "the teacher's checkpoint must be there"),
      ((f"distill_from.checkpoint = '{teacher}/model.ckpt-7'",),
       "the teacher's checkpoint must be there"),
      (("distill_from.config = 'nowhere.gin'",),
       "the teacher's gin file must be there"),
      (("MIXTURE_NAME = 'public_domain_span_corruption_4k'",),
       "student and teacher must have one vocabulary"),
      (("teacher/SwitchFFN.num_experts = 8",),
       "the teacher's checkpoint must match the teacher's model"),
      (("temperature = 0.0",), "temperature must be a finite number")):
    done = run(tmp_path / "run", *student_flags(teacher, *params))
    assert done.returncode == 1
    assert f"distillation: {text}" in done.stderr
    assert "Traceback" not in done.stderr
