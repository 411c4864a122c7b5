"""Finds the checkpoints that a run asks for, and no others.

Upstream takes the nearest step for one that is not there, random weights where
there is no checkpoint, and starts anew where the file `checkpoint` is missing.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from switch_mtf.errors import some
from switch_mtf.gin_files import Binding, Macro, Reference, flat, setting
from switch_mtf.training import checkpoint_files

MAX_STEPS = 12

# The bindings that ask for a step, in the run files.
STEP_BINDINGS = ("eval_checkpoint_step, infer_checkpoint_step, "
                 "score_checkpoint_step or export_checkpoint_step")


def require(
    model_dir: str, asked: Any, binding: str = STEP_BINDINGS,
    who: str = "run_t5", option: str = "--model_dir",
) -> list[str]:
  """Returns the paths of the checkpoints that are asked for, each once.

  Args:
    model_dir: folder of the run.
    asked: a step, -1 for the last, "all", or a list of steps. As upstream has
      it, "all" leaves out step 0, unless nothing else is there.
    binding: what sets `asked`.
    who: who asks, for the error.
    option: what names the folder.

  Raises:
    ValueError: if `asked` is none of these, or a checkpoint is not there.
  """
  there = checkpoint_files.steps(model_dir)
  wanted = list(asked) if isinstance(asked, (list, tuple)) else [asked]
  if -1 in wanted or not there:
    checkpoint_files.require_last_whole(model_dir, who)
  if not there:
    raise ValueError(
        f"{who}: {option} must be a folder with checkpoints, with "
        f"{option.removeprefix('--')}={model_dir}, "
        f"{checkpoint_files.described(model_dir)}. Correct {option}, or train "
        "first.")
  if asked == "all":
    trained = [step for step in there if step > 0] or there
    return [checkpoint_files.path(model_dir, step) for step in trained]
  missing = [step for step in wanted if not (
      isinstance(step, int) and not isinstance(step, bool)
      and (step in there or step == -1))]
  if missing or not wanted:
    quoted = (" without quotation marks" if any(
        isinstance(step, str) and step.isdigit() for step in missing) else "")
    raise ValueError(
        f"{who}: every step asked for must be that of a checkpoint, with "
        f"{binding}={asked!r}, model_dir={model_dir}, steps there="
        f"{some(map(str, there), MAX_STEPS)}. Set {binding} to one of these"
        f"{quoted}, or to -1 for the last.")
  return list(dict.fromkeys(
      checkpoint_files.last(model_dir) if step == -1
      else checkpoint_files.path(model_dir, step) for step in wanted))


def require_one(
    asked: Any, binding: str, what: str, who: str = "run_t5") -> None:
  """Raises ValueError unless one checkpoint is asked for.

  Args:
    asked: a step, -1 for the last, "all", None, or a list of steps.
    binding: what sets `asked`.
    what: what is of one checkpoint.
    who: who asks, for the error.
  """
  if asked is None or asked == "all" or (
      isinstance(asked, list | tuple) and len(asked) != 1):
    raise ValueError(
        f"{who}: {what} must be of one checkpoint, with {binding}={asked!r}. "
        f"Set {binding} to a step, or to -1 for the last.")


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
  if "://" in model_dir:  # checked when the checkpoints are looked for
    return None
  checkpoint_files.require_plain_name(model_dir, "--model_dir")
  if mode == "train":
    _check_phases(bindings)
    return check_new_training(model_dir)
  exports = str(mode).startswith("export")
  asked, name = setting(bindings, "run.export_checkpoint_step" if exports
                        else "run.eval_checkpoint_step")
  if any(isinstance(part, Macro | Reference) for part in flat(asked)):
    return None  # known when gin has run
  if exports and asked is None:
    asked = -1
  if exports or str(mode).startswith("score_from"):
    require_one(asked, name, str(mode))
  return _check_steps(model_dir, asked, name)


def check_model_api(
    mode: str | None, model_dir: str, asked: Any, pretrained: str
) -> str | None:
  """Checks the checkpoints that a run of T5's model API needs.

  Args:
    mode: value of --mode.
    model_dir: folder of the run.
    asked: the steps that --checkpoint_mode and --checkpoint_steps ask for.
    pretrained: value of --pretrained_model_dir.

  Returns:
    A line for the user, or None.

  Raises:
    ValueError: if a checkpoint is not there; see `require`.
  """
  if mode is None:
    raise ValueError(
        "run_t5: --mode must be given with --use_model_api, with mode=None. "
        "Add --mode=eval or another.")
  name = "--checkpoint_steps"
  if mode == "finetune" and "://" not in pretrained:
    require_one(asked, name, mode)
    require(pretrained, asked, name, option="--pretrained_model_dir")
  if "://" in model_dir:
    return None
  checkpoint_files.require_plain_name(model_dir, "--model_dir")
  if mode in ("train", "finetune"):
    return check_new_training(model_dir)
  if mode != "eval" and mode != "predict":
    require_one(asked, name, mode)
  return _check_steps(model_dir, asked, name)


def of_flags(checkpoint_mode: str, steps: Sequence[str]) -> Any:
  """Returns what --checkpoint_mode and --checkpoint_steps ask for.

  Args:
    checkpoint_mode: "latest", "all" or "specific".
    steps: value of --checkpoint_steps.

  Returns:
    -1, "all" or a list of steps, as for `require`.

  Raises:
    ValueError: if a step is no number, or steps would be passed over.
  """
  if checkpoint_mode != "specific" and steps:
    raise ValueError(
        "run_t5: --checkpoint_steps must go with --checkpoint_mode=specific, "
        f"with checkpoint_steps={','.join(steps)}, checkpoint_mode="
        f"{checkpoint_mode}. Add --checkpoint_mode=specific, or leave the "
        "steps out.")
  if not all(re.fullmatch(r"-?\d+", step) for step in steps):
    raise ValueError(
        "run_t5: --checkpoint_steps must be whole numbers, with "
        f"checkpoint_steps={','.join(steps)}. Write --checkpoint_steps=0,400.")
  return {"latest": -1, "all": "all"}.get(
      checkpoint_mode, [int(step) for step in steps])


def check_new_training(model_dir: str) -> str | None:
  """Checks that training does not begin anew beside checkpoints.

  TensorFlow looks for checkpoints in the file `checkpoint` only: without it,
  training would begin at step 0, and overwrite and delete what is in the
  folder. `go_on_from` of upstream's seams makes it look for the files, too.

  Args:
    model_dir: folder of the run.

  Returns:
    A line that says from which checkpoint training goes on, if that is not what
    the file says.

  Raises:
    ValueError: if the last checkpoint is not whole, or there is one without a
      step in its name only.
  """
  checkpoint_files.require_last_whole(model_dir, "run_t5")
  others = checkpoint_files.without_step(model_dir)
  if others and checkpoint_files.last(model_dir) is None:
    raise ValueError(
        "run_t5: the name of a checkpoint must end with its step, as in "
        f"model.ckpt-400, with model_dir={model_dir}, "
        f"checkpoint={some(others)}. Rename its files to go on from it, or "
        "choose another --model_dir to begin anew.")
  return _unlisted(model_dir, "training goes on from")


def _check_phases(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a step that training will not reach.

  A phase that evaluates it would fail when training is done. The other steps of
  a phase are there only then.
  """
  phases, _ = setting(bindings, "train_then.phases")
  asked, name = setting(bindings, "eval_checkpoint_step")
  end, _ = setting(bindings, "run.train_steps")
  beyond = [step for step in flat(asked)
            if type(step) is int and isinstance(end, int) and step > end]
  if phases and beyond:
    raise ValueError(
        "run_t5: a phase must evaluate steps that training reaches, with "
        f"{name}={asked!r}, train_steps={end}. Set {name} to a lower step, or "
        "to -1 for the last.")


def _check_steps(model_dir: str, asked: Any, name: str) -> str | None:
  """Checks that what is asked for is there, or that it may still come."""
  if asked is not None:
    for path in require(model_dir, asked, name):
      checkpoint_files.require_readable(path, "run_t5", "checkpoint")
    if asked == "all":
      return _passed_over(model_dir)
    return _unlisted(model_dir, "-1 is") if asked == -1 else None
  if checkpoint_files.steps(model_dir):
    return None
  if checkpoint_files.is_file(model_dir):
    require(model_dir, -1)  # which no training can fill
  return (f"{model_dir}: waiting for the first checkpoint ({name} = None), "
          f"{checkpoint_files.described(model_dir)}")


def _passed_over(model_dir: str) -> str | None:
  """Returns a line that names the checkpoints that are not whole, or None."""
  partial = checkpoint_files.partial(model_dir)
  return partial and (
      f"{model_dir}: passed over, because parts are missing: "
      f"{some((f'model.ckpt-{step}' for step in partial), MAX_STEPS)}") or None


def _unlisted(model_dir: str, what: str) -> str | None:
  """Returns a line if the last checkpoint is not the listed one, or None."""
  last = checkpoint_files.last(model_dir)
  listed = checkpoint_files.listed(model_dir)
  if last is None or last == listed:
    return None
  file = os.path.join(model_dir, "checkpoint")
  why = (f"names {listed}, which is missing" if listed else
         "names none" if os.path.exists(file) else "is missing")
  return (f"{model_dir}: {what} {last}, the last checkpoint there; the file "
          f"'checkpoint' {why}")
