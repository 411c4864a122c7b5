"""Counts evaluations, so that a command that did none can say so."""

import gin

from switch_mtf.errors import near, some

_count = 0


def count() -> None:
  """Notes that something was evaluated."""
  global _count
  _count += 1


def so_far() -> int:
  """Returns how many outcomes were counted."""
  return _count


def require_more(than: int, who: str) -> None:
  """Raises ValueError if nothing was evaluated since.

  Only evaluations can end without a result; training, decoding, scoring and
  export say what they did, or raise errors.

  Args:
    than: the result of `so_far` before.
    who: the command or phase, for the error.

  Raises:
    ValueError: naming the task, its splits and what to bind.
  """
  mode = gin.get_bindings("run").get("mode", "train")
  if _count > than or not str(mode).endswith("eval"):
    return
  raise _nothing(
      who, mode,
      gin.get_bindings("mesh_eval_dataset_fn").get("mixture_or_task_name"),
      gin.get_bindings("run").get("dataset_split", "train"),
      "utils.run.dataset_split")


def refuse_api(name: str, split: str) -> None:
  """Raises ValueError: the model API has nothing to evaluate.

  Args:
    name: mixture or task.
    split: value of --eval_split.
  """
  raise _nothing("run_t5", "eval", name, split, "--eval_split")


def _nothing(
    who: str, mode: str, name: str | None, split: str, option: str
) -> ValueError:
  """Returns the error of an evaluation of nothing."""
  import seqio  # not needed where there is an outcome
  tasks = [] if name is None else seqio.get_subtasks(
      seqio.get_mixture_or_task(name))
  splits = sorted({s for task in tasks for s in task.splits})
  there = f", splits there={some(splits)}{near(split, splits)}"
  without = [task.name for task in tasks if not task.metric_fns]
  change = f"Set {option} to one of {some(splits)}."
  if split in splits and mode == "eval" and without:
    there = f", tasks without metric_fns={some(without)}"
    change = ("Give the task metric_fns, or evaluate its loss with "
              "gin/runs/perplexity_eval.gin.")
  elif split in splits:
    change = "Set eval_checkpoint_step to a step that is there, or to -1."
  return ValueError(
      f"{who}: something must be evaluated, with mode={mode}, "
      f"task={name}, split={split}{there}. {change}")
