"""Openings through which this project looks for the checkpoints of a run.

`training/model_fn.py` opens them; until then upstream works as it is.
"""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gin
import tensorflow.compat.v1 as tf

from switch_mtf.upstream.infer_and_score import arguments

# Finds checkpoints: of a folder and of a step, -1 for the last, "all" or a list
# of steps, it returns the paths, or raises ValueError.
Find = Callable[[str, Any], list[str]]


def find_checkpoints_with(
    find: Find, follow: Callable[[str, int | None], Iterator[str]]) -> None:
  """Makes `find` look for the checkpoints that a run asks for.

  Upstream's `get_checkpoint_iterator` and T5's `get_checkpoints_iterator` take
  the nearest step of any file whose name has one, and None, which means random
  weights, where there is no last checkpoint. Can be removed when they raise
  errors.

  Args:
    find: see `Find`.
    follow: returns the paths of a folder's checkpoints as they are written, up
      to a last step.
  """
  from mesh_tensorflow.transformer import utils
  from t5.models import utils as t5_utils
  upstream = getattr(utils.get_checkpoint_iterator, "of_upstream",
                     utils.get_checkpoint_iterator)
  t5s = inspect.unwrap(t5_utils.get_checkpoints_iterator)

  @functools.wraps(upstream)
  def get_checkpoint_iterator(*args, **kwargs):
    call = arguments(upstream, args, kwargs)
    step = call["checkpoint_step"]
    if step is None:  # a run that follows a training run
      return (path for path in follow(call["model_dir"], call["stop_after"])
              if utils.get_step_from_checkpoint_path(path) > call["skip_until"])
    paths = find(call["model_dir"], step)
    if step != "all" or not call["skip_until"]:
      return paths
    later = [path for path in paths if utils.get_step_from_checkpoint_path(
        path) > call["skip_until"]]
    if not later:
      raise ValueError(
          "get_checkpoint_iterator: skip_until must leave a checkpoint, with "
          f"skip_until={call['skip_until']}, last={paths[-1]}. Set "
          "get_checkpoint_iterator.skip_until to a lower step.")
    return later

  @functools.wraps(t5s)
  def get_checkpoints_iterator(checkpoint_steps, model_dir):
    if model_dir is None:
      return t5s(checkpoint_steps, model_dir)
    if checkpoint_steps is None:
      return map(utils.get_step_from_checkpoint_path, follow(model_dir, None))
    return [utils.get_step_from_checkpoint_path(path)
            for path in find(model_dir, checkpoint_steps)]

  def get_latest_checkpoint_from_dir(model_dir):
    last, = find(model_dir, -1)
    return utils.get_step_from_checkpoint_path(last)

  get_checkpoint_iterator.of_upstream = upstream
  utils.get_checkpoint_iterator = get_checkpoint_iterator
  t5_utils.get_checkpoints_iterator = get_checkpoints_iterator
  t5_utils.get_latest_checkpoint_from_dir = get_latest_checkpoint_from_dir


def go_on_from(last: Callable[[str], str | None]) -> None:
  """Makes TensorFlow see checkpoints that the file `checkpoint` does not name.

  TensorFlow takes a folder for empty if that file is missing or names what is
  not there, and training then overwrites the weights in it. Only what `last`
  returns is taken over, so that other checkpoints are never deleted. Can be
  removed when TensorFlow looks for the files.

  Args:
    last: returns the path of a folder's last checkpoint, or None.
  """
  from tensorflow.python.checkpoint import checkpoint_management
  from tensorflow.python.training import checkpoint_state_pb2
  upstream = inspect.unwrap(checkpoint_management.get_checkpoint_state)

  @functools.wraps(upstream)
  def get_checkpoint_state(checkpoint_dir, latest_filename=None):
    if latest_filename is not None or not checkpoint_dir:
      return upstream(checkpoint_dir, latest_filename)
    path = last(os.fspath(checkpoint_dir))
    try:
      state = upstream(checkpoint_dir)
    except ValueError:  # a file that names nothing
      state = None
    if path is None or state and state.model_checkpoint_path == path:
      return state
    return checkpoint_state_pb2.CheckpointState(
        model_checkpoint_path=path, all_model_checkpoint_paths=[path])

  checkpoint_management.get_checkpoint_state = get_checkpoint_state


def tell_steps() -> None:
  """Prints of which step each result of infer, score and export is.

  Upstream names the step in the names of infer's files only. Scores of several
  steps are refused, which upstream cannot write, and so is an export of several
  steps, of which upstream takes the first; for an export of step 0 it takes the
  last. Can be removed when upstream says which step it takes.
  """
  from mesh_tensorflow.transformer import utils
  infer, export = utils.infer_model, utils.export_model

  @functools.wraps(infer)
  def infer_model(*args, **kwargs):
    call = arguments(infer, args, kwargs)
    paths = call["checkpoint_paths"]
    if paths is None:
      paths = utils.get_checkpoint_iterator(
          call["eval_checkpoint_step"], call["model_dir"])
    given = inspect.signature(infer).bind_partial(*args, **kwargs).arguments
    return infer(**given | {
        "checkpoint_paths": map(functools.partial(_say, "infer"), paths)})

  @functools.wraps(export)
  def export_model(*args, **kwargs):
    given = inspect.signature(export).bind_partial(*args, **kwargs).arguments
    folder = given.get("export_dir") or ""
    if os.path.isfile(folder):
      raise ValueError(
          f"export: export_path must be a folder, with export_path={folder}, "
          "which is a file. Set export_path to another folder.")
    path = given.get("checkpoint_path") or _path_to_export(
        given["estimator"].model_dir)
    written = export(**given | {"checkpoint_path": _say("export", path)})
    print("wrote", tf.compat.as_str_any(written), flush=True)
    return written

  utils.infer_model, utils.export_model = infer_model, export_model
  for name in ("score_from_strings", "score_from_dataset"):
    setattr(utils, name, _of_one_step(getattr(utils, name)))


def _of_one_step(upstream: Callable) -> Callable:
  """Returns a scoring function that says its step, and takes one only."""
  from mesh_tensorflow.transformer import utils

  @functools.wraps(upstream)
  def score(*args, **kwargs):
    call = arguments(upstream, args, kwargs)
    step = call["eval_checkpoint_step"]
    path = _one("score", "eval_checkpoint_step", step, call["model_dir"])
    given = inspect.signature(upstream).bind_partial(*args, **kwargs).arguments
    return upstream(**given | {
        "eval_checkpoint_step": utils.get_step_from_checkpoint_path(
            _say("score", path))})

  return score


def _path_to_export(model_dir: str) -> str:
  """Returns the path for `run.export_checkpoint_step`: None means the last."""
  step = gin.get_bindings("run").get("export_checkpoint_step")
  return _one("export", "export_checkpoint_step", -1 if step is None else step,
              model_dir)


def _one(who: str, option: str, step: Any, model_dir: str) -> str:
  """Returns the path of the one checkpoint asked for, or raises ValueError."""
  from mesh_tensorflow.transformer import utils
  paths = [] if step is None else list(
      utils.get_checkpoint_iterator(step, model_dir))
  if len(paths) != 1:
    raise ValueError(
        f"{who}: the result must be of one checkpoint, with {option}={step!r}. "
        f"Set {option} to a step, or to -1 for the last.")
  return paths[0]


def _say(who: str, path: str) -> str:
  """Prints the step of a checkpoint; returns its path."""
  step = re.search(r"model\.ckpt-(\d+)$", path)
  of = f"step {int(step[1]):,} of {os.path.dirname(path)}" if step else path
  print(f"{who}: {of}", file=sys.stderr, flush=True)
  return path


def finetune_with_flags() -> None:
  """Lets T5's main call `MtfModel.finetune`, under --use_model_api.

  The main passes `steps` and `checkpoint_steps`, which the method calls
  `finetune_steps` and `pretrained_checkpoint_step`: a TypeError. Can be removed
  when they agree.
  """
  from t5.models import mtf_model
  upstream = inspect.unwrap(mtf_model.MtfModel.finetune)
  names = {"steps": "finetune_steps",
           "checkpoint_steps": "pretrained_checkpoint_step"}

  @functools.wraps(upstream)
  def finetune(self, *args, **kwargs):
    return upstream(self, *args, **{
        names.get(name, name): value for name, value in kwargs.items()})

  mtf_model.MtfModel.finetune = finetune


def obey_gin_param_under_model_api() -> None:
  """Makes --gin_param win over a run's recorded bindings, under the model API.

  `MtfModel` reads the operative_config.gin of model_dir after the flags, and so
  undoes --gin_param. Can be removed when it applies the flags last.
  """
  from absl import flags
  from t5.models import mtf_model
  upstream = inspect.unwrap(mtf_model._parse_operative_config)

  @functools.wraps(upstream)
  def parse_operative_config(model_dir):
    upstream(model_dir)
    if "gin_param" in flags.FLAGS and flags.FLAGS.is_parsed():
      with gin.unlock_config():
        gin.parse_config(flags.FLAGS.gin_param or [])

  mtf_model._parse_operative_config = parse_operative_config
