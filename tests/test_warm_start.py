"""What a run says of the checkpoint that it begins from."""

import dataclasses

import pytest
import tensorflow.compat.v1 as tf

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
