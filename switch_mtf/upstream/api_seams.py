"""Openings where `MtfModel` and `train_model` end without a result or a word.

The model API evaluates by a function of its own, `t5.models.utils.run_eval`,
which `evaluation_seams` does not see.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as tf

from switch_mtf.upstream import evaluation_seams
from switch_mtf.upstream.seams import _replaced


def record_api_evaluations_with(
    record: evaluation_seams.Record, refuse: Callable[[str, str], None]
) -> None:
  """Makes `MtfModel.eval` report every evaluation, or say why there is none.

  Upstream writes results to TensorBoard only, and returns if no task has both
  the split and metrics. Can be removed when it returns what it evaluated.

  Args:
    record: gets the kind "task_metrics", the task's name, and the split.
    refuse: raises the error for a mixture or task without anything to evaluate
      in a split.
  """
  from t5.models import mtf_model
  upstream = inspect.unwrap(mtf_model.MtfModel.eval)

  @functools.wraps(upstream)
  def observed(self, *args, **kwargs):
    run_eval = functools.partial(
        _run_eval, inspect.unwrap(mtf_model.utils.run_eval), self._model_dir,
        record, refuse)
    with _replaced(mtf_model.utils, run_eval=run_eval):
      return upstream(self, *args, **kwargs)

  mtf_model.MtfModel.eval = observed


def _run_eval(
    upstream: Callable, model_dir: str, record: evaluation_seams.Record,
    refuse: Callable[[str, str], None], **call: Any
) -> None:
  """Runs T5's `run_eval`; reports the metrics of each checkpoint.

  Upstream does not make the folder that it writes texts to.
  """
  import seqio
  from mesh_tensorflow.transformer import utils
  name, split = call["mixture_or_task_name"], call["split"]
  valid = seqio.evaluation.get_valid_eval_tasks(
      seqio.get_subtasks(seqio.get_mixture_or_task(name)), split)
  if not valid:
    refuse(name, split)
  results: dict[str, dict[str, Any]] = {}
  paths = evaluation_seams._Checkpoints(
      (os.path.join(model_dir, f"model.ckpt-{step}")
       for step in call["checkpoint_steps"]), results,
      functools.partial(record, model_dir, "task_metrics", split=split))
  observed = [_Task(task, results) for task in valid]
  steps = (int(utils.get_step_from_checkpoint_path(path)) for path in paths)
  if call["summary_dir"]:
    tf.io.gfile.makedirs(call["summary_dir"])
  with _replaced(seqio.evaluation, get_valid_eval_tasks=lambda *_: observed):
    upstream(**call | {"checkpoint_steps": steps})


class _Task:
  """A seqio task whose metrics are noted in `results`."""

  def __init__(self, task: Any, results: dict[str, dict[str, Any]]):
    self._task, self._results = task, results

  def __getattr__(self, name: str) -> Any:
    return getattr(self._task, name)

  @property
  def metric_fns(self) -> list[Callable]:
    """Returns the task's metrics, which note what they return."""
    return [evaluation_seams.noted(metric, self._task.name, self._results)
            for metric in self._task.metric_fns]


def check_training_with(check: Callable[[str, int], None]) -> None:
  """Makes `check` see every training's folder and last step before it starts.

  `Estimator.train` returns at once where that step has been trained. Can be
  removed when it says so.

  Args:
    check: raises the error for a run that is done.
  """
  from mesh_tensorflow.transformer import utils
  upstream = getattr(utils.get_estimator, "with_unchecked_training",
                     utils.get_estimator)

  @functools.wraps(upstream)
  def get_estimator(*args, **kwargs):
    estimator = upstream(*args, **kwargs)
    train = estimator.train

    @functools.wraps(train)
    def checked(*args, **kwargs):
      call = inspect.signature(train).bind(*args, **kwargs).arguments
      if call.get("max_steps") is not None:
        check(estimator.model_dir, call["max_steps"])
      return train(*args, **kwargs)

    estimator.train = checked
    return estimator

  get_estimator.with_unchecked_training = upstream
  utils.get_estimator = get_estimator
