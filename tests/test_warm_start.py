"""What a run says of the checkpoint that it begins from."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.checkpoints import save

from switch_mtf.gin_files import Binding, Macro, Reference
from switch_mtf.training import warm_start
from switch_mtf.upstream import seams

RUN = seams.ModelRun(
    mode="train", use_tpu=False, model_dir=None, tokens_per_step=1,
    mesh_shape=None, layout_rules=None, keep_checkpoint_max=None)


def made(**shapes):
  """Variables in a new graph, by name."""
  return [tf.get_variable(name.replace("__", "/"), shape)
          for name, shape in shapes.items()]


@pytest.fixture
def run(tmp_path):
  """One that begins from a checkpoint of the variables a, b, b's slot, step."""
  with tf.Graph().as_default(), tf.Session() as session:
    made(a=[2], b=[3], b_slot_v=[3])
    tf.train.create_global_step()
    session.run(tf.global_variables_initializer())
    path = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"))
  return dataclasses.replace(RUN, init_checkpoint=path)


def told(run, **shapes):
  with tf.Graph().as_default():
    variables = made(**shapes)
    step = tf.train.create_global_step()
    return warm_start.lines(run, [*variables, step])


def test_everything_is_taken_over(run):
  assert told(run, a=[2], b=[3], b_slot_v=[3]) == [
      "init_checkpoint: 2 of 2 weights and 1 optimizer slots from "
      f"{run.init_checkpoint}; the step count continues"]


def test_what_has_no_counterpart_is_named(run):
  assert told(run, a=[2], c=[1], c_slot_v=[1])[1:] == [
      "init_checkpoint: new in the run (1): c",
      "init_checkpoint: not taken over (1): b"]


def test_what_is_left_out_is_named(run):
  run = dataclasses.replace(run, init_variable_filter="^(?!global_step|b)")
  assert told(run, a=[2], b=[3], b_slot_v=[3]) == [
      "init_checkpoint: 1 of 2 weights and 0 optimizer slots from "
      f"{run.init_checkpoint}; the step count starts at 0",
      "init_checkpoint: new in the run (1): b",
      "init_checkpoint: not taken over (2): b, global_step"]


def test_another_model_is_refused(run):
  with pytest.raises(ValueError, match=(
      "run_t5: init_checkpoint must have weights of this model, with weights "
      r"in common=0 of 1, init_checkpoint=.*; only in checkpoint \(2\): "
      "a, b.")):
    told(run, c=[1])


def test_another_size_is_explained(run):
  with tf.Graph().as_default():
    variable, = made(a=[5])
    with pytest.raises(ValueError) as upstreams:
      tf.train.init_from_checkpoint(run.init_checkpoint, {"a": variable})
  assert str(warm_start.explain(run, upstreams.value)).startswith(
      "run_t5: init_checkpoint must be of a model with these sizes, with "
      f"a=(5,) in the run, [2] in init_checkpoint={run.init_checkpoint}. ")
  assert warm_start.explain(run, ValueError("another")) is None


def test_the_checkpoint_must_be_there(run, tmp_path):
  warm_start.check(run.init_checkpoint)
  with pytest.raises(ValueError, match=(
      "run_t5: init_checkpoint must be a checkpoint, with init_checkpoint="
      "nowhere, .* Set utils.run.init_checkpoint")):
    warm_start.check("nowhere")


@pytest.mark.parametrize("changes, begins", [
    ({}, True), ({"mode": "eval"}, False), ({"init_checkpoint": None}, False)])
def test_only_a_new_training_run_begins_from_another(run, changes, begins):
  assert warm_start.begins_from_another(
      dataclasses.replace(run, **changes)) == begins


def test_a_run_with_a_checkpoint_goes_on_from_that(run, tmp_path):
  assert not warm_start.begins_from_another(
      dataclasses.replace(run, model_dir=str(tmp_path)))


# Before anything is made.


def bindings(**values):
  names = {"filter": "tpu_estimator_model_fn.init_variable_filter",
           "mapping": "init_checkpoint_variable_mapping.mapping_fn",
           "teacher": "distill_from.checkpoint",
           "finder": "fill_logit_cache.find_teacher"}
  return [Binding("", names.get(name, f"utils.run.{name}"), value, "a.gin", 1)
          for name, value in values.items()]


@pytest.fixture
def pretrained(tmp_path):
  """A checkpoint of step 400."""
  save(tmp_path / "pretrained", 400, global_step=np.int64(400))
  return str(tmp_path / "pretrained/model.ckpt-400")


@pytest.mark.parametrize("values, said", [
    ({"train_steps": 50}, "train_steps=50, step of .*=400, .* = 450 for 50 "),
    ({"train_steps": 400}, "Set utils.run.train_steps = 800 for 400 more"),
    ({"train_steps": 0}, "Set utils.run.train_steps = 401 for 1 more steps"),
    ({"train_steps": 500, "skip_seen_data": True, "seen_data_init_step": 40},
     "seen_data_init_step=40, first step=400, .*init_step = 400"),
    ({"train_steps": 50, "skip_seen_data": True, "seen_data_init_step": 400,
      "filter": "^(?!global_step)"}, "first step=0, .*_init_step = 0")],
    ids=str)
def test_steps_that_do_not_fit_are_refused(values, said, pretrained, tmp_path):
  with pytest.raises(ValueError, match=said):
    warm_start.check_start(bindings(init_checkpoint=pretrained, **values),
                           str(tmp_path / "new"))


@pytest.mark.parametrize("values", [
    {"train_steps": 401}, {"train_steps": Reference("epochs()")},
    {"train_steps": 50, "filter": "^(?!global_step)"},
    {"train_steps": 50, "mapping": Reference("mine")},
    {"train_steps": 50, "mode": "eval"},
    {"train_steps": 500, "skip_seen_data": True, "seen_data_init_step": 400},
    {"train_steps": 500, "skip_seen_data": True, "seen_data_init_step": 0},
    {"train_steps": 500, "skip_seen_data": False, "seen_data_init_step": 4},
    ], ids=str)
def test_steps_that_fit_pass(values, pretrained, tmp_path):
  warm_start.check_start(bindings(init_checkpoint=pretrained, **values),
                         str(tmp_path / "new"))


def test_a_run_that_has_begun_needs_no_other(pretrained, tmp_path):
  model_dir = str(save(tmp_path / "begun", 10))
  for path in (pretrained, "nowhere/model.ckpt-1"):
    warm_start.check_start(
        bindings(init_checkpoint=path, train_steps=50), model_dir)


def test_what_cannot_be_read_yet_is_left_to_the_run(tmp_path):
  for path in ("gs://bucket/model.ckpt-4", None, Macro("x"), ""):
    warm_start.check_start(bindings(
        init_checkpoint=path, teacher=path, model_type="bi_student_teacher"),
        str(tmp_path / "new"))


@pytest.mark.parametrize("uses", [
    {"model_type": "bi_student_teacher"},
    {"finder": Reference("distill_from")}], ids=str)
def test_a_teacher_must_be_there(uses, pretrained, tmp_path):
  new, folder = str(tmp_path / "new"), os.path.dirname(pretrained)
  for there in (pretrained, folder, f"{folder}/"):
    warm_start.check_start(bindings(teacher=there, **uses), new)
  for path, said in ((f"{folder}/model.ckpt-4", f"steps in {folder}=400"),
                     (f"{folder}s", "nearest: ")):
    warm_start.check_start(bindings(teacher=path), new)  # not used
    with pytest.raises(ValueError, match=(
        f"checkpoint must be there, with checkpoint={path}, .*{said}")):
      warm_start.check_start(bindings(teacher=path, **uses), new)


def test_init_checkpoint_says_what_is_beside_it(pretrained):
  with pytest.raises(ValueError, match="no .index file, steps in .*=400. Set"):
    warm_start.check(pretrained.replace("400", "300"))
  with pytest.raises(ValueError, match="its last checkpoint is .*-400"):
    warm_start.check(os.path.dirname(pretrained))


def test_a_run_that_is_done_has_nothing_to_train(tmp_path):
  warm_start.check_end(str(tmp_path), 1)  # a new run
  save(tmp_path, 20, global_step=np.int64(20))
  warm_start.check_end(str(tmp_path), 21)
  with pytest.raises(ValueError, match="with train_steps=20, last step=20, "
                     f"model_dir={tmp_path}. Set train_steps "):
    warm_start.check_end(str(tmp_path), 20)
