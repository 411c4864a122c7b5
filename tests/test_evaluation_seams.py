"""Upstream's evaluations report what they do, whatever is deleted meanwhile."""

import types

import pytest
import tensorflow.compat.v1 as tf
from helpers.checkpoints import save
from mesh_tensorflow.transformer import dataset as transformer_dataset
from mesh_tensorflow.transformer import utils

from switch_mtf.upstream import evaluation_seams


@pytest.fixture
def recorded(monkeypatch):
  """What is recorded; upstream's functions are restored afterwards."""
  for name in ("get_estimator", "eval_model", "get_checkpoint_iterator"):
    monkeypatch.setattr(utils, name, getattr(utils, name))
  return []


def open_with(recorded, monkeypatch, **upstream):
  for name, function in upstream.items():
    monkeypatch.setattr(utils, name, function)
  evaluation_seams.record_evaluations_with(
      lambda *args: recorded.append(args[1:]))


def test_an_estimator_reports_its_losses(recorded, monkeypatch, tmp_path):
  def evaluate(input_fn, steps=None, hooks=None, checkpoint_path=None,
               name=None):
    return {"global_step": 5, "loss": 1.0}

  open_with(recorded, monkeypatch, get_estimator=lambda: types.SimpleNamespace(
      model_dir="/runs/a", evaluate=evaluate))
  estimator = utils.get_estimator()
  assert estimator.evaluate(None, name="t_validation_8") == {"loss": 1.0}
  assert estimator.evaluate(None) == {"loss": 1.0}  # of nothing with a name
  assert recorded == [("eval", "t_validation_8", 5, {"loss": 1.0})]


def test_a_deleted_checkpoint_has_no_loss(
    recorded, monkeypatch, tmp_path, capsys):
  def evaluate(input_fn, steps=None, hooks=None, checkpoint_path=None,
               name=None):
    raise tf.errors.NotFoundError(None, None, "gone")

  open_with(recorded, monkeypatch, get_estimator=lambda: types.SimpleNamespace(
      model_dir=str(tmp_path), evaluate=evaluate))
  path = str(save(tmp_path, 7) / "model.ckpt-7")
  with pytest.raises(tf.errors.NotFoundError):  # another file is not there
    utils.get_estimator().evaluate(None, checkpoint_path=path)
  assert utils.get_estimator().evaluate(
      None, checkpoint_path=path.replace("7", "9")) == {}
  assert recorded == []
  assert "model.ckpt-9: passed over, it has been deleted since" in (
      capsys.readouterr().err)


def test_metrics_of_every_checkpoint_that_stays(
    recorded, monkeypatch, tmp_path, capsys):
  # Of 5 checkpoints, one is deleted before its turn and one during it.
  save(tmp_path, 1, 2, 3, 4, 5)

  def delete(step):
    for path in tmp_path.glob(f"model.ckpt-{step}.*"):
      path.unlink()

  def eval_model(
      estimator, vocabulary, sequence_length, batch_size, dataset_split,
      model_dir, eval_dataset_fn, eval_summary_dir, eval_checkpoint_step):
    dataset, = eval_dataset_fn(
        sequence_length=None, vocabulary=None, dataset_split="validation")
    for path in utils.get_checkpoint_iterator(eval_checkpoint_step, model_dir):
      step = utils.get_step_from_checkpoint_path(path)
      if step == 2:
        delete(3)
      if step == 4:
        delete(4)
        raise ValueError("Could not find the checkpoint")
      dataset.metric_fns[0]([1, 2], [step])

  open_with(recorded, monkeypatch, eval_model=eval_model)
  utils.eval_model(
      None, None, None, 1, "validation", str(tmp_path),
      lambda **kwargs: [transformer_dataset.EvalDataset(
          "task", None, None, [lambda targets, found: {"em": found[0]}])],
      None, "all")
  assert recorded == [
      ("task_metrics", "task", step, {"em": step, "examples": 2})
      for step in (1, 2, 5)]
  assert capsys.readouterr().err.splitlines() == [
      f"model.ckpt-{step}: passed over, it has been deleted since"
      for step in (3, 4)]


def test_other_errors_are_raised(recorded, monkeypatch, tmp_path):
  save(tmp_path, 1)

  def eval_model(model_dir, eval_dataset_fn, eval_checkpoint_step,
                 sequence_length, vocabulary, dataset_split):
    for _ in utils.get_checkpoint_iterator(eval_checkpoint_step, model_dir):
      raise ValueError("another mistake")

  open_with(recorded, monkeypatch, eval_model=eval_model)
  with pytest.raises(ValueError, match="another mistake"):
    utils.eval_model(str(tmp_path), lambda **kwargs: [], "all", None, None, "")
