"""Finds the checkpoints that a run asks for, and no others.

Upstream takes the nearest step for one that is not there, random weights where
there is no checkpoint, and starts anew where the file `checkpoint` is missing.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from switch_mtf.errors import counted, some
from switch_mtf.gin_files import Binding, Macro, Reference, setting

MAX_NAMES = 6
MAX_FOLDERS = 500  # that are searched for checkpoints

# The bindings that ask for a step, in the run files.
STEP_BINDINGS = ("eval_checkpoint_step, infer_checkpoint_step, "
                 "score_checkpoint_step or export_checkpoint_step")


def steps(model_dir: str) -> list[int]:
  """Returns the steps of the whole checkpoints in a folder, sorted.

  A checkpoint is whole if its index and all parts of its data are there.
  """
  if not tf.io.gfile.isdir(model_dir):
    return []
  names = set(tf.io.gfile.listdir(model_dir))
  parts: dict[int, list[int]] = {}
  for name in names:
    found = re.fullmatch(
        r"model\.ckpt-(\d+)\.data-\d{5}-of-(\d{5})", name)
    if found:
      parts.setdefault(int(found[1]), []).append(int(found[2]))
  return sorted(step for step, totals in parts.items()
                if f"model.ckpt-{step}.index" in names
                and len(totals) == totals[0])


def path(model_dir: str, step: int) -> str:
  """Returns the path of a checkpoint, without '.index'."""
  return os.path.join(model_dir, f"model.ckpt-{step}")


def last(model_dir: str) -> str | None:
  """Returns the path of a folder's last checkpoint, or None if it has none.

  That is the one which the file `checkpoint` names or, if that file or the
  checkpoint is missing, the one of the largest step.
  """
  named = tf.train.latest_checkpoint(model_dir)
  if named:
    return named
  there = steps(model_dir)
  return path(model_dir, there[-1]) if there else None


def require(
    model_dir: str, asked: Any, binding: str = STEP_BINDINGS,
    who: str = "run_t5",
) -> list[str]:
  """Returns the paths of the checkpoints that are asked for.

  Args:
    model_dir: folder of the run.
    asked: a step, -1 for the last, "all", or a list of steps.
    binding: what sets `asked`.
    who: who asks, for the error.

  Raises:
    ValueError: if `asked` is none of these, or a checkpoint is not there.
  """
  there = steps(model_dir)
  if not there:
    raise ValueError(
        f"{who}: --model_dir must be a folder with checkpoints, with "
        f"model_dir={model_dir}, {_content(model_dir)}{_nearest(model_dir)}. "
        "Correct --model_dir, or train first.")
  if asked == "all":
    return [path(model_dir, step) for step in there]
  wanted = list(asked) if isinstance(asked, (list, tuple)) else [asked]
  missing = [step for step in wanted if not (
      isinstance(step, int) and not isinstance(step, bool)
      and (step in there or step == -1))]
  if missing or not wanted:
    raise ValueError(
        f"{who}: every step asked for must be that of a checkpoint, with "
        f"{binding}={asked!r}, model_dir={model_dir}, steps there="
        f"{some(map(str, there), 12)}. Set {binding} to one of these, or to -1 "
        "for the last.")
  return [last(model_dir) if step == -1 else path(model_dir, step)
          for step in wanted]


def check_start(bindings: Sequence[Binding], model_dir: str) -> str | None:
  """Checks the checkpoints that a run needs, before anything is made.

  Args:
    bindings: all bindings of the run.
    model_dir: folder of the run.

  Returns:
    A line for the user, or None.

  Raises:
    ValueError: if a checkpoint is not there; see `require`.
  """
  mode, _ = setting(bindings, "run.mode", "train")
  if mode == "train":
    return check_new_training(model_dir)
  exports = str(mode).startswith("export")
  asked, name = setting(bindings, "run.export_checkpoint_step" if exports
                        else "run.eval_checkpoint_step")
  if isinstance(asked, Macro | Reference):  # known when gin has run
    return None
  one = exports or str(mode).startswith("score_from")
  if one and asked in (None, 0) and exports:
    asked = -1
  if one and (asked is None or asked == "all"
              or isinstance(asked, list | tuple) and len(asked) != 1):
    raise ValueError(
        f"run_t5: {mode} must be of one checkpoint, with {name}={asked!r}. "
        f"Set {name} to a step, or to -1 for the last.")
  if asked is not None:
    require(model_dir, asked, name)
  elif not steps(model_dir):
    return f"{model_dir}: waiting for the first checkpoint ({name} = None)"
  return None


def _content(model_dir: str) -> str:
  """Returns what is in a folder, in words."""
  if not tf.io.gfile.exists(model_dir):
    return "which does not exist"
  if not tf.io.gfile.isdir(model_dir):
    return "which is a file"
  names = sorted(tf.io.gfile.listdir(model_dir))
  return counted("in it", names, MAX_NAMES) if names else "which is empty"


def _nearest(model_dir: str) -> str:
  """Returns '; with checkpoints, nearest: a, b', of the folders around one."""
  if "://" in model_dir:
    return ""
  folder = os.path.abspath(model_dir)
  known = [os.path.relpath(found) for found in _folders_around(folder)
           if found != folder and steps(found)]
  wanted = os.path.relpath(folder)
  known.sort(key=lambda name: -difflib.SequenceMatcher(
      None, name, wanted).ratio())
  return f"; with checkpoints, nearest: {', '.join(known[:3])}" if known else ""


def _folders_around(folder: str) -> Iterator[str]:
  """Yields a folder's descendants, its siblings and theirs, up to a depth."""
  top = os.path.dirname(folder)
  while not os.path.isdir(top):
    top = os.path.dirname(top)
  count = 0
  for root, names, _ in os.walk(top):
    depth = root[len(top):].count(os.sep)
    names[:] = sorted(names) if depth < 3 else []
    count += 1
    if count > MAX_FOLDERS:
      return
    yield root


def check_new_training(model_dir: str) -> str | None:
  """Makes training go on from checkpoints that the file `checkpoint` lacks.

  TensorFlow looks for checkpoints in that file only: without it, training would
  begin at step 0, and overwrite and delete what is in the folder. If whole
  checkpoints are there, the file is written.

  Args:
    model_dir: folder of the run.

  Returns:
    A line that says so, or None if there is nothing to do.

  Raises:
    ValueError: if there are only parts of checkpoints.
  """
  if not tf.io.gfile.isdir(model_dir) or tf.train.latest_checkpoint(model_dir):
    return None
  parts = sorted(name for name in tf.io.gfile.listdir(model_dir)
                 if name.startswith("model.ckpt"))
  there = steps(model_dir)
  if parts and not there:
    raise ValueError(
        "run_t5: a checkpoint must be whole, with its .index and all parts of "
        f"its .data, with model_dir={model_dir}, "
        f"{counted('parts in it', parts, MAX_NAMES)}. Add the files that are "
        "missing, or choose another --model_dir: training would overwrite "
        "these.")
  if not there:
    return None
  paths = [path(model_dir, step) for step in there]
  named = tf.io.gfile.exists(os.path.join(model_dir, "checkpoint"))
  tf.train.update_checkpoint_state(
      model_dir, paths[-1], all_model_checkpoint_paths=paths)
  what = "named another" if named else "was missing"
  return (f"{model_dir}: training goes on from step {there[-1]:,}, the last "
          f"checkpoint there; the file 'checkpoint' {what}")
