"""The model API reports its evaluations; training that is done is checked."""

import types

import pytest
import seqio
from helpers.checkpoints import save
from mesh_tensorflow.transformer import utils
from t5.models import mtf_model

from switch_mtf.upstream import api_seams

TASK = types.SimpleNamespace(
    name="qa", splits=["validation"], metric_objs=[],
    predict_with_aux_metric_fns=[], score_metric_fns=[],
    metric_fns=[lambda targets, predictions: {"em": float(predictions[0])},
                lambda targets, predictions: {"f1": 2.0}])
TASK.predict_metric_fns = TASK.metric_fns


def refuse(name, split):
  raise ValueError(f"nothing of {name} in {split}")


@pytest.fixture
def recorded(monkeypatch):
  """What is recorded, by an API that evaluates as T5's does."""
  found = []
  monkeypatch.setattr(seqio, "get_mixture_or_task", lambda name: name)
  monkeypatch.setattr(seqio, "get_subtasks", lambda task: [TASK])

  def run_eval(mixture_or_task_name, checkpoint_steps, split, summary_dir):
    open(f"{summary_dir}/qa_targets", "w").close()  # in a folder that is there
    tasks = seqio.evaluation.get_valid_eval_tasks([TASK], split)
    for step in checkpoint_steps:
      for task in tasks:
        for metric in task.metric_fns:
          metric([1, 2, 3], [step])

  def evaluate(self, mixture_or_task_name, checkpoint_steps, split):
    mtf_model.utils.run_eval(
        mixture_or_task_name=mixture_or_task_name,
        checkpoint_steps=checkpoint_steps, split=split,
        summary_dir=f"{self._model_dir}/{split}_eval")

  monkeypatch.setattr(mtf_model.utils, "run_eval", run_eval)
  monkeypatch.setattr(mtf_model.MtfModel, "eval", evaluate)
  for _ in range(2):  # a second time changes nothing
    api_seams.record_api_evaluations_with(
        lambda *args, **kwargs: found.append((*args, kwargs)), refuse)
  return found


def evaluate(folder, steps, split="validation"):
  model = types.SimpleNamespace(_model_dir=str(folder))
  mtf_model.MtfModel.eval(model, "qa", checkpoint_steps=steps, split=split)


def test_every_checkpoint_that_is_there_is_recorded(
    recorded, tmp_path, capsys):
  evaluate(save(tmp_path, 5, 9), [5, 7, 9])
  assert recorded == [
      (str(tmp_path), "task_metrics", "qa", step,
       {"em": float(step), "f1": 2.0, "examples": 3}, {"split": "validation"})
      for step in (5, 9)]
  assert "model.ckpt-7: passed over" in capsys.readouterr().err


def test_a_split_without_anything_to_evaluate(recorded, tmp_path):
  with pytest.raises(ValueError, match="nothing of qa in dev"):
    evaluate(save(tmp_path, 5), [5], "dev")
  assert recorded == []
  assert not (tmp_path / "dev_eval").exists()


def test_training_is_checked_before_it_starts(monkeypatch):
  done = []

  def train(input_fn, hooks=None, steps=None, max_steps=None):
    done.append(max_steps or steps)

  monkeypatch.setattr(utils, "get_estimator", lambda: types.SimpleNamespace(
      model_dir="/runs/a", train=train))

  def check(model_dir, last):
    if last <= 20:
      raise ValueError(f"{model_dir} is done")

  for _ in range(2):
    api_seams.check_training_with(check)
  with pytest.raises(ValueError, match="/runs/a is done"):
    utils.get_estimator().train(None, max_steps=20)
  utils.get_estimator().train(None, max_steps=21)
  utils.get_estimator().train(None, steps=3)
  assert done == [21, 3]
