"""Finds the best checkpoint of each task, as the paper reports fine-tuning.

T5's evaluation scores checkpoints one by one but does not compare them. Each
task has its own best step in each split, by the mean of its metrics; the score
of a mixture is the mean over its tasks. Runs of `gin/runs/finetune.gin` keep
all checkpoints, so the best of them still exist.
"""

import collections
import json
import math
import os
import re
import sys
from typing import Any

import gin
import tensorflow.compat.v1 as tf

from switch_mtf.errors import some
from switch_mtf.training import metrics

BEST_FILE = "best.json"
# Names of metrics by their direction: those of T5, seqio, and the usual ones.
HIGHER = re.compile(
    r"accuracy|exact_match|(^|[_-])em$|f1|bleu|rouge|corrcoef|correlation|auc|"
    r"precision|recall|neg_log_perplexity|(?<!neg_log_)likelihood|matthews|"
    r"kappa|jaccard|fbeta|meteor|chrf|(^|[_-])mcc$")
LOWER = re.compile(
    r"error|loss|distance|(^|[_-])edit|neg_log_likelihood|"
    r"(^|[_-])(perplexity|nll|mse|rmse|mae|wer|cer|ter)$")


@gin.configurable
def metric_directions(
    higher: tuple[str, ...] = (), lower: tuple[str, ...] = ()
) -> dict[str, int]:
  """States of metrics whether a higher or a lower value is better.

  Args:
    higher: names of metrics of which the highest value is best.
    lower: names of metrics of which the lowest value is best.

  Returns:
    Name to 1 for higher, or -1 for lower.

  Raises:
    ValueError: if a name is in both.
  """
  both = sorted(set(higher) & set(lower))
  if both:
    raise ValueError(
        "metric_directions: a metric must have one direction, with in both="
        f"{some(both)}. Correct metric_directions.higher or .lower.")
  return dict.fromkeys(higher, 1) | dict.fromkeys(lower, -1)


def direction(metric: str) -> int | None:
  """Returns 1 if higher is better, -1 if lower is, None if it is not known."""
  stated = metric_directions()
  if metric in stated:
    return stated[metric]
  if HIGHER.search(metric):
    return 1
  return -1 if LOWER.search(metric) else None


def splits(model_dir: str) -> list[str]:
  """Returns the splits that T5's evaluations of a run scored."""
  found = tf.io.gfile.glob(os.path.join(model_dir, "*_eval"))
  return sorted(os.path.basename(path).removesuffix("_eval") for path in found)


def scores(
    model_dir: str, split: str = "validation"
) -> dict[str, dict[int, dict[str, float]]]:
  """Reads the scores of T5's evaluations of a run.

  Args:
    model_dir: folder of the run.
    split: split that was scored.

  Returns:
    Task -> step -> metric -> value.
  """
  found = collections.defaultdict(lambda: collections.defaultdict(dict))
  directory = os.path.join(model_dir, f"{split}_eval")
  for step, values in metrics.read_events(directory).items():
    for tag, value in values.items():
      if at := re.fullmatch(r"eval/([^/]+)/(.+)", tag):
        found[at[1]][step][at[2]] = value
  return found


def best(
    model_dir: str, split: str = "validation") -> dict[str, dict[str, Any]]:
  """Returns the best step of each task; of equally good steps, the first.

  A step with a metric that is not a finite number is never best. Metrics whose
  direction is not known do not count.

  Args:
    model_dir: folder of the run.
    split: split that was scored.

  Returns:
    Task -> {"step", "score", "metrics"}. The score is the mean of the metrics
      that count, with the other sign where lower is better. A task without such
      a step or metric is left out.
  """
  found = {}
  for task, steps in sorted(scores(model_dir, split).items()):
    means = {step: mean for step, values in sorted(steps.items())
             if (mean := _mean(values)) is not None}
    if means:
      step = max(means, key=means.get)
      found[task] = {"step": step, "score": means[step],
                     "metrics": {name: value for name, value in sorted(
                         steps[step].items()) if math.isfinite(value)}}
  return found


def _mean(values: dict[str, float]) -> float | None:
  """Returns the mean of the metrics that count, None if there is none."""
  counted = [direction(name) * value for name, value in values.items()
             if direction(name) is not None]
  if not counted or not all(map(math.isfinite, counted)):
    return None
  return sum(counted) / len(counted)


def unknown(model_dir: str) -> list[str]:
  """Returns the names of metrics whose direction is not known."""
  return sorted({
      name for split in splits(model_dir)
      for steps in scores(model_dir, split).values()
      for values in steps.values() for name in values
      if direction(name) is None})


def report(model_dir: str) -> None:
  """Writes `best.json` and prints one line per task, if anything is new.

  Args:
    model_dir: folder of the run.
  """
  found = {split: tasks for split in splits(model_dir)
           if (tasks := best(model_dir, split))}
  names = unknown(model_dir)
  if names:
    print(f"best.json leaves out {some(names)}: say with "
          "metric_directions.higher or .lower which values are better",
          file=sys.stderr)
  path = os.path.join(model_dir, BEST_FILE)
  if not found or (tf.io.gfile.exists(path) and _read(path) == found):
    return
  with tf.io.gfile.GFile(path, "w") as f:
    json.dump(found, f, indent=1)
  for split, tasks in found.items():
    for task, at in tasks.items():
      figures = " | ".join(f"{name} {value:.2f}"
                           for name, value in at["metrics"].items())
      print(f"{task} | {split} | best at step {at['step']:,} | {figures}")
    if len(tasks) > 1:
      mean = sum(at["score"] for at in tasks.values()) / len(tasks)
      print(f"{len(tasks)} tasks, {split}, each at its best | mean {mean:.2f}")


def _read(path: str) -> Any:
  """Reads a JSON file; None if it is none."""
  with tf.io.gfile.GFile(path) as f:
    try:
      return json.load(f)
    except ValueError:
      return None
