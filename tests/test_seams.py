"""The openings of upstream: the model_fn, and the global step."""

import inspect

import gin
import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf.upstream import fixes, seams


@pytest.fixture
def extensions(monkeypatch):
  """No extension but those of the test."""
  monkeypatch.setattr(seams, "_extensions", [])


class Recorder(seams.ModelFnExtension):
  """Notes when it is called, and adds its name to the spec."""

  def __init__(self, name, events):
    self.name, self.events = name, events

  def before_graph(self, run):
    self.run = run
    self.events.append(f"{self.name} before")

  def finish(self, run, spec):
    assert run is self.run
    self.events.append(f"{self.name} finish")
    return spec + [self.name]


ARGUMENTS = dict(
    model_type="bitransformer", transformer_model=None, vocabulary=None,
    model_dir="/models/a", use_tpu=False,
    mesh_shape=mtf.convert_to_shape("b:2"),
    layout_rules="batch:b", batch_size=4,
    sequence_length={"inputs": 16, "targets": 8, "unused": 100},
    autostack=False, keep_checkpoint_max=3, save_checkpoints_steps=10)


def open_fake(monkeypatch, model_fn):
  """Opens a function with upstream's signature that returns `model_fn`."""
  signature = inspect.signature(gin.get_configurable("tpu_estimator_model_fn"))

  def closed(*args, **kwargs):
    return model_fn

  closed.__signature__ = signature
  monkeypatch.setattr(utils, "tpu_estimator_model_fn", closed)
  seams.open_model_fn()
  assert utils.tpu_estimator_model_fn is not closed
  return utils.tpu_estimator_model_fn


def test_model_fn_is_open_once():
  opened = utils.tpu_estimator_model_fn
  assert opened.opened_by_switch_mtf
  seams.open_model_fn()
  assert utils.tpu_estimator_model_fn is opened


def test_extensions_run_in_order(monkeypatch, extensions):
  events = []

  def model_fn(features, labels, mode, params, config):
    events.append("model")
    assert (labels, params, config) == ("labels", {"p": 1}, "config")
    return [f"{mode} spec"]

  first, second = Recorder("first", events), Recorder("second", events)
  seams.extend_model_fn(first)
  seams.extend_model_fn(second)
  opened = open_fake(monkeypatch, model_fn)(**ARGUMENTS)
  spec = opened({"inputs": 0, "targets": 0}, "labels", "eval",
                params={"p": 1}, config="config")
  assert spec == ["eval spec", "first", "second"]
  assert events == ["first before", "second before", "model",
                    "first finish", "second finish"]


def test_run_is_described(monkeypatch, extensions):
  recorder = Recorder("one", [])
  seams.extend_model_fn(recorder)
  model_fn = open_fake(monkeypatch, lambda *args, **kwargs: [])
  model_fn(**ARGUMENTS, init_checkpoint="/b/c", init_variable_filter="^x")(
      {"inputs": 0, "targets": 0}, None, "eval")
  # 4 sequences of 16 + 8 tokens: no feature is called "unused".
  assert recorder.run == seams.ModelRun(
      mode="eval", use_tpu=False, model_dir="/models/a",
      tokens_per_step=4 * (16 + 8), mesh_shape=ARGUMENTS["mesh_shape"],
      layout_rules="batch:b", keep_checkpoint_max=3, init_checkpoint="/b/c",
      init_variable_filter="^x", features={"inputs": 0, "targets": 0},
      vocabulary=ARGUMENTS.get("vocabulary"))


def test_bindings_of_gin_are_described(monkeypatch, extensions):
  recorder = Recorder("one", [])
  seams.extend_model_fn(recorder)
  gin.parse_config("""
      tpu_estimator_model_fn.init_variable_filter = "^x"
      tpu_estimator_model_fn.init_checkpoint = "/of/gin"
  """)
  model_fn = open_fake(monkeypatch, lambda *args, **kwargs: [])
  # What the caller says wins, as it does in gin.
  model_fn(**ARGUMENTS, init_checkpoint="/b/c")(
      {"inputs": 0, "targets": 0}, None, "eval")
  assert recorder.run.init_variable_filter == "^x"
  assert recorder.run.init_checkpoint == "/b/c"


def test_run_is_described_without_optional_arguments(monkeypatch, extensions):
  recorder = Recorder("one", [])
  seams.extend_model_fn(recorder)
  model_fn = open_fake(monkeypatch, lambda *args, **kwargs: [])
  model_fn(*ARGUMENTS.values())({"targets": 0}, None, "infer")
  assert recorder.run.mode == "infer"
  assert recorder.run.tokens_per_step == 4 * 8


def test_upstream_takes_the_arguments_we_read(extensions):
  class Seen(Exception):
    pass

  class Stop(seams.ModelFnExtension):
    def before_graph(self, run):
      raise Seen(run)

  seams.extend_model_fn(Stop())
  opened = utils.tpu_estimator_model_fn(**ARGUMENTS)
  with pytest.raises(Seen):
    opened({"targets": 0}, None, "eval")


class Explainer(seams.ModelFnExtension):
  """Explains IndexErrors."""

  def explain(self, run, error):
    return KeyError("better") if isinstance(error, IndexError) else None


def raising(error):
  def model_fn(*args, **kwargs):
    raise error
  return model_fn


def test_errors_are_explained(monkeypatch, extensions):
  seams.extend_model_fn(seams.ModelFnExtension())
  seams.extend_model_fn(Explainer())
  opened = open_fake(monkeypatch, raising(IndexError("plain")))(**ARGUMENTS)
  with pytest.raises(KeyError, match="better") as caught:
    opened({}, None, "eval")
  assert isinstance(caught.value.__cause__, IndexError)


def test_other_errors_pass(monkeypatch, extensions):
  seams.extend_model_fn(Explainer())
  opened = open_fake(monkeypatch, raising(OSError("plain")))(**ARGUMENTS)
  with pytest.raises(OSError, match="plain"):
    opened({}, None, "eval")


def counting_graph():
  """Returns the step, reads of it made before and after, and the increment."""
  step = tf.train.get_or_create_global_step()
  before = tf.identity(step)
  count = step.assign_add(1, read_value=False)
  after = tf.identity(step)
  return step, before, count, after


def reads_of(step):
  return [op for op in step.handle.consumers() if op.type == "ReadVariableOp"]


def test_step_reads_are_ordered():
  step, before, count, after = counting_graph()
  seams.order_step_reads(tf.get_default_graph())
  assert set(reads_of(step)) <= set(count.control_inputs)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for n in range(20):
      found = session.run([before, after, count])
      assert found[:2] == [n, n]


def test_value_of_the_increment_is_read_after_it():
  step = tf.train.get_or_create_global_step()
  new_value = tf.assign_add(step, 1)
  seams.order_step_reads(tf.get_default_graph())
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    assert session.run(new_value) == 1


@pytest.mark.parametrize("mode, use_tpu, ordered", [
    ("train", False, True), ("train", True, False), ("eval", False, False)])
def test_only_training_off_tpu_is_ordered(
    monkeypatch, extensions, mode, use_tpu, ordered):
  made = []

  def model_fn(*args, **kwargs):
    made.extend(counting_graph())
    return []

  arguments = ARGUMENTS | {"use_tpu": use_tpu}
  open_fake(monkeypatch, model_fn)(**arguments)({"targets": 0}, None, mode)
  step, _, count, _ = made
  assert (set(reads_of(step)) <= set(count.control_inputs)) == ordered


def test_reference_variables_are_refused(monkeypatch):
  tf.disable_resource_variables()
  try:
    model_fn = utils.tpu_estimator_model_fn(
        "bitransformer", transformer_model=None, vocabulary=None,
        model_dir="", use_tpu=None, mesh_shape=mtf.convert_to_shape(""),
        layout_rules=mtf.convert_to_layout_rules(""), batch_size=1,
        sequence_length={}, autostack=False, keep_checkpoint_max=1,
        save_checkpoints_steps=1)
    with pytest.raises(ValueError, match="must be resource variables"):
      model_fn({}, None, "train")
  finally:
    fixes.use_resource_variables()
