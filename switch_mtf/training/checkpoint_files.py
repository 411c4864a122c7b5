"""Reads which checkpoints a folder holds, and whether they are whole.

TensorFlow trusts the file `checkpoint`: without it, or where it names what is
not there, a folder full of weights counts as empty.
"""

import difflib
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.errors import counted, some

MAX_NAMES = 6
MAX_STEPS = 12
MAX_FOLDERS = 500  # that are searched for checkpoints


def steps(model_dir: str) -> list[int]:
  """Returns the steps of the whole checkpoints in a folder, sorted.

  A checkpoint is whole if its index and all parts of its data are there.
  """
  return [step for step, lacks in _found(model_dir).items() if not lacks]


def partial(model_dir: str) -> list[int]:
  """Returns the steps of which a folder holds parts only, sorted."""
  return [step for step, lacks in _found(model_dir).items() if lacks]


def without_step(model_dir: str) -> list[str]:
  """Returns the names of checkpoints whose names are not model.ckpt-STEP."""
  if not tf.io.gfile.isdir(model_dir):
    return []
  found = (re.fullmatch(r"(model\.ckpt.*)\.index", name)
           for name in sorted(tf.io.gfile.listdir(model_dir)))
  return [match[1] for match in found
          if match and not re.fullmatch(r"model\.ckpt-\d+", match[1])]


def path(model_dir: str, step: int) -> str:
  """Returns the path of a checkpoint, without '.index'."""
  return os.path.join(model_dir, f"model.ckpt-{step}")


def last(model_dir: str) -> str | None:
  """Returns the path of a folder's last checkpoint, or None if it has none.

  That is the one which the file `checkpoint` names or, if that file or the
  checkpoint is missing, the one of the largest step.
  """
  named = listed(model_dir)
  if named and tf.io.gfile.exists(f"{named}.index"):
    return named
  there = steps(model_dir)
  return path(model_dir, there[-1]) if there else None


def listed(model_dir: str) -> str | None:
  """Returns the path that the file `checkpoint` names, there or not.

  In a folder that was copied, the file may still name the checkpoint of the
  folder that it was copied from. The folder's own is meant.
  """
  try:
    state = tf.train.get_checkpoint_state(model_dir)
  except ValueError:  # the file names nothing
    return None
  if state is None:
    return None
  named = state.model_checkpoint_path
  own = os.path.join(model_dir, os.path.basename(named))
  return own if tf.io.gfile.exists(f"{own}.index") else named


def require_last_whole(model_dir: str, who: str) -> None:
  """Raises ValueError if a folder's last checkpoint is not whole.

  An older one would be taken silently, or the weights of a new run.

  Args:
    model_dir: a folder; without any checkpoint it passes.
    who: who asks, for the error.
  """
  named, there = listed(model_dir), steps(model_dir)
  if named and tf.io.gfile.exists(f"{named}.index"):
    broken = named if _lacks(named) else None
  else:
    # What a run leaves that is killed while it saves its step 0 is no loss.
    newer = [step for step in partial(model_dir)
             if step > (there[-1] if there else 0)]
    broken = path(model_dir, newer[-1]) if newer else (
        None if there else named)
  if broken:
    otherwise = (f"{broken}.*, to take step {there[-1]}" if there else
                 f"{broken}.* and the file 'checkpoint', to begin anew")
    raise ValueError(
        f"{who}: the last checkpoint must be whole, with checkpoint={broken}, "
        f"missing={_lacks(broken)}, whole ones={_steps(there)}. Copy the "
        f"checkpoint again, or remove {otherwise}.")


def require_plain_name(path: str, option: str, who: str = "run_t5") -> None:
  """Raises ValueError for a path in which TensorFlow would find nothing.

  Args:
    path: a model_dir, or the path of a checkpoint.
    option: what names it.
    who: who asks, for the error.
  """
  if "://" not in path and (found := re.search(r"[*?[\\]", path)):
    raise ValueError(
        f"{who}: {option} must have no character that TensorFlow reads as a "
        f"pattern, with {option.removeprefix('--')}={path}, "
        f"character={found[0]}: a run might not find its checkpoints, or take "
        f"others for them. Set {option} to another folder, or rename it.")


def require_readable(path: str, who: str, option: str) -> None:
  """Raises ValueError unless all parts of a checkpoint are there and whole.

  Args:
    path: path of the checkpoint, without '.index'.
    who: who asks, for the error.
    option: what names the checkpoint.
  """
  require_plain_name(path, option, who)
  lacks = _lacks(path)
  wrong = f"missing={lacks}" if lacks else _unreadable(path)
  if wrong:
    raise ValueError(
        f"{who}: a checkpoint must be whole, with {option}={path}, {wrong}. "
        f"Copy the checkpoint again, or set {option} to another one.")


def is_file(model_dir: str) -> bool:
  """Returns whether a path is that of a file, where no folder can be."""
  return tf.io.gfile.exists(model_dir) and not tf.io.gfile.isdir(model_dir)


def described(model_dir: str) -> str:
  """Returns what a folder without checkpoints is, and which ones are near."""
  return f"{_content(model_dir)}{nearest(model_dir)}"


def around(path: str) -> str:
  """Returns what is at a path, or in the folder of a checkpoint's path."""
  folder = path if tf.io.gfile.isdir(path) else os.path.dirname(path) or "."
  there = steps(folder)
  if there:
    return f"steps in {folder}={_steps(there)}"
  if folder == path or not tf.io.gfile.isdir(folder):
    return described(path)
  meant = folder if os.path.basename(path).startswith("model.ckpt") else path
  return f"folder={folder}, {_content(folder)}{nearest(meant)}"


def nearest(model_dir: str) -> str:
  """Returns '; with checkpoints, nearest: a, b', of the folders around one."""
  if "://" in model_dir:
    return ""
  folder = os.path.abspath(model_dir)
  shown = str if os.path.isabs(model_dir) else os.path.relpath
  known = [shown(found) for found in _folders_around(folder)
           if found != folder and steps(found)]
  wanted = shown(folder)
  known.sort(key=lambda name: -difflib.SequenceMatcher(
      None, name, wanted).ratio())
  return f"; with checkpoints, nearest: {', '.join(known[:3])}" if known else ""


def _found(model_dir: str) -> dict[int, str]:
  """Returns step -> the first part that its checkpoint lacks, or ''."""
  if not tf.io.gfile.isdir(model_dir):
    return {}
  names = set(tf.io.gfile.listdir(model_dir))
  found = {int(match[1]) for name in names if (match := re.fullmatch(
      r"model\.ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})", name))}
  return {step: _lacking(f"model.ckpt-{step}", names) for step in sorted(found)}


def _lacks(path: str) -> str:
  """Returns the first part that a checkpoint lacks, or ''."""
  folder, name = os.path.split(path)
  exists = tf.io.gfile.isdir(folder or ".")
  return _lacking(
      name, set(tf.io.gfile.listdir(folder or ".")) if exists else set())


def _lacking(checkpoint: str, names: set[str]) -> str:
  """Returns the first part of a checkpoint that is not among names, or ''."""
  if f"{checkpoint}.index" not in names:
    return f"{checkpoint}.index"
  totals = [int(match[1]) for name in names if (match := re.fullmatch(
      re.escape(checkpoint) + r"\.data-\d{5}-of-(\d{5})", name))]
  total = max(totals, default=1)
  parts = (f"{checkpoint}.data-{part:05}-of-{total:05}"
           for part in range(total))
  return next((part for part in parts if part not in names), "")


def _unreadable(path: str) -> str:
  """Returns what is wrong with the files of a checkpoint, or ''."""
  try:
    reader = tf.train.load_checkpoint(path)
    types = reader.get_variable_to_dtype_map()
    needed = sum(
        int(np.prod(shape)) * types[name].size
        for name, shape in reader.get_variable_to_shape_map().items()
        if types[name] != tf.string)
  except (tf.errors.OpError, RuntimeError, ValueError):
    return f"which cannot be read: {os.path.basename(path)}.index is damaged"
  folder, name = os.path.split(path)
  size = sum(tf.io.gfile.stat(os.path.join(folder, part)).length
             for part in tf.io.gfile.listdir(folder or ".")
             if part.startswith(f"{name}.data-"))
  return "" if size >= needed else (
      f"bytes of data={size:,}, bytes that its index says={needed:,}")


def _steps(there: list[int]) -> str:
  """Returns '0, 400', or 'none'."""
  return some(map(str, there), MAX_STEPS) or "none"


def _content(model_dir: str) -> str:
  """Returns what is in a folder, in words."""
  if not tf.io.gfile.exists(model_dir):
    return "which does not exist"
  if is_file(model_dir):
    return "which is a file"
  names = sorted(tf.io.gfile.listdir(model_dir))
  return counted("in it", names, MAX_NAMES) if names else "which is empty"


def _folders_around(folder: str) -> Iterator[str]:
  """Yields a folder's descendants, its siblings and theirs, up to a depth."""
  top = os.path.dirname(folder)
  while not os.path.isdir(top):
    top = os.path.dirname(top)
  count = 0
  for root, names, _ in os.walk(top, followlinks=True):
    depth = root[len(top):].count(os.sep)
    names[:] = sorted(names) if depth < 3 else []
    count += 1
    if count > MAX_FOLDERS:
      return
    yield root
