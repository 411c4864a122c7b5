"""Openings in upstream's evaluations: their results, and their checkpoints.

Upstream writes results to TensorBoard only, and its loops end in a traceback
when a training run deletes a checkpoint before its turn.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow.compat.v1 as tf

from switch_mtf.upstream.seams import _replaced

# Receives model_dir, kind, name, step and the values of one evaluation.
Record = Callable[[str, str, str, int, dict[str, Any]], None]


def record_evaluations_with(record: Record) -> None:
  """Makes upstream report every evaluation when it is done.

  Can be removed when `utils.run` returns what it evaluated.

  Args:
    record: gets the kind "eval" for losses, with the Estimator's name of the
      evaluation, or "task_metrics", with the task's name.
  """
  from mesh_tensorflow.transformer import utils
  utils.get_estimator = _observed_estimators(
      getattr(utils.get_estimator, "of_upstream", utils.get_estimator), record)
  utils.eval_model = _observed_eval_model(
      getattr(utils.eval_model, "of_upstream", utils.eval_model), record)


def _observed_estimators(upstream: Callable, record: Record) -> Callable:
  """Returns `get_estimator` with estimators that report what they evaluate."""

  @functools.wraps(upstream)
  def get_estimator(*args, **kwargs):
    estimator = upstream(*args, **kwargs)
    evaluate = estimator.evaluate

    @functools.wraps(evaluate)
    def observed(
        input_fn, steps=None, hooks=None, checkpoint_path=None, name=None):
      with _Deletion(checkpoint_path) as deletion:
        values = dict(evaluate(input_fn, steps, hooks, checkpoint_path, name))
        step = int(values.pop("global_step"))
        if name is not None:  # filling a logit cache is no evaluation
          record(estimator.model_dir, "eval", name, step, values)
      return {} if deletion.happened else values

    estimator.evaluate = observed
    return estimator

  get_estimator.of_upstream = upstream
  return get_estimator


def _observed_eval_model(upstream: Callable, record: Record) -> Callable:
  """Returns `eval_model` that reports metrics, and passes over what is gone."""
  from mesh_tensorflow.transformer import utils

  @functools.wraps(upstream)
  def eval_model(*args, **kwargs):
    call = inspect.signature(upstream).bind(*args, **kwargs)
    call.apply_defaults()
    call = call.arguments
    results: dict[str, dict[str, Any]] = {}
    paths = _Checkpoints(
        utils.get_checkpoint_iterator(
            call["eval_checkpoint_step"], call["model_dir"]),
        results, functools.partial(record, call["model_dir"], "task_metrics"))
    datasets = list(call["eval_dataset_fn"](**{
        name: call[name]
        for name in ("sequence_length", "vocabulary", "dataset_split")}))
    watched = [_watched(dataset, results) for dataset in datasets]
    call["eval_dataset_fn"] = lambda **unused: watched
    quiet = functools.partial(utils.write_lines_to_file, say=False)
    while True:
      # After a deletion, upstream starts again with the next checkpoint.
      with (_replaced(utils, get_checkpoint_iterator=lambda *unused: paths,
                      write_lines_to_file=quiet),
            _Deletion(lambda: paths.path) as deletion):
        upstream(**call)
      if not deletion.happened:
        return

  eval_model.of_upstream = upstream
  return eval_model


def _watched(dataset: Any, results: dict[str, dict[str, Any]]) -> Any:
  """Returns an EvalDataset whose metrics are noted in `results`."""
  from mesh_tensorflow.transformer import dataset as transformer_dataset
  dataset = transformer_dataset.EvalDataset(*dataset)
  return dataset._replace(metric_fns=[
      noted(metric_fn, dataset.name, results)
      for metric_fn in dataset.metric_fns or ()])


def noted(
    metric_fn: Callable, name: str, results: dict[str, dict[str, Any]]
) -> Callable:
  """Returns a task's metric that notes its values, too.

  Args:
    metric_fn: the metric.
    name: name of the task.
    results: task -> figure -> value, which is added to.
  """
  @functools.wraps(metric_fn)
  def metric(targets, *args, **kwargs):
    values = metric_fn(targets, *args, **kwargs)
    found = values if isinstance(values, dict) else {
        value.tag.rsplit("/", 1)[-1]: value.simple_value
        for value in values.value}
    results.setdefault(name, {}).update(found, examples=len(targets))
    return values
  return metric


class _Checkpoints(Iterator):
  """Iterates over checkpoints; reports the results of each before the next."""

  def __init__(self, upstream, results, record):
    self._upstream, self._results, self._record = (
        iter(upstream), results, record)
    self.path = None

  def __next__(self) -> str:
    """Returns the next checkpoint that is there."""
    from mesh_tensorflow.transformer import utils
    if self._results:
      step = utils.get_step_from_checkpoint_path(self.path)
      for name, values in self._results.items():
        self._record(name, int(step), values)
      self._results.clear()
    for path in self._upstream:
      self.path = path
      if tf.train.checkpoint_exists(path):
        return path
      _say_gone(path)
    raise StopIteration


class _Deletion:
  """Suppresses the errors of a checkpoint that is deleted while it is read."""

  def __init__(self, path: str | None | Callable[[], str | None]):
    self._path = path if callable(path) else lambda: path
    self.happened = False

  def __enter__(self) -> "_Deletion":
    return self

  def __exit__(self, kind, error, traceback) -> bool:
    path = self._path()
    self.happened = (
        isinstance(error, tf.errors.OpError | ValueError) and path is not None
        and not tf.train.checkpoint_exists(path))
    if self.happened:
      _say_gone(path)
    return self.happened


def _say_gone(path: str) -> None:
  """Prints that a checkpoint was deleted."""
  print(f"{os.path.basename(path)}: passed over, it has been deleted since",
        file=sys.stderr, flush=True)
