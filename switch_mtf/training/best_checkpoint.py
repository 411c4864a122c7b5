"""Finds the best checkpoint of each task, as the paper reports fine-tuning.

T5's evaluation scores checkpoints one by one but does not compare them. Each
task has its own best step, by the mean of its metrics; the score of a mixture
is the mean over its tasks. Runs of `gin/runs/finetune.gin` keep all
checkpoints, so the best of them still exist.
"""

import collections
import json
import os
import re
from typing import Any

import tensorflow.compat.v1 as tf

from switch_mtf.training import metrics

BEST_FILE = "best.json"


def scores(model_dir: str) -> dict[str, dict[int, dict[str, float]]]:
  """Reads the scores of T5's evaluations of a run.

  Args:
    model_dir: folder of the run.

  Returns:
    Task -> step -> metric -> value.
  """
  found = collections.defaultdict(lambda: collections.defaultdict(dict))
  for directory in tf.io.gfile.glob(os.path.join(model_dir, "*_eval")):
    for step, values in metrics.read_events(directory).items():
      for tag, value in values.items():
        if at := re.fullmatch(r"eval/([^/]+)/(.+)", tag):
          found[at[1]][step][at[2]] = value
  return found


def best(model_dir: str) -> dict[str, dict[str, Any]]:
  """Returns the best step of each task; of equally good steps, the first.

  Args:
    model_dir: folder of the run.

  Returns:
    Task -> {"step", "score": mean of the metrics, "metrics"}.
  """
  found = {}
  for task, steps in sorted(scores(model_dir).items()):
    means = {step: sum(values.values()) / len(values)
             for step, values in sorted(steps.items())}
    step = max(means, key=means.get)
    found[task] = {"step": step, "score": means[step],
                   "metrics": dict(sorted(steps[step].items()))}
  return found


def report(model_dir: str) -> None:
  """Writes `best.json` and prints one line per task, if anything is new.

  Args:
    model_dir: folder of the run.
  """
  found = best(model_dir)
  path = os.path.join(model_dir, BEST_FILE)
  if not found or (tf.io.gfile.exists(path) and _read(path) == found):
    return
  with tf.io.gfile.GFile(path, "w") as f:
    json.dump(found, f, indent=1)
  for task, at in found.items():
    figures = " | ".join(f"{name} {value:.2f}"
                         for name, value in at["metrics"].items())
    print(f"{task} | best at step {at['step']:,} | {figures}")
  if len(found) > 1:
    mean = sum(at["score"] for at in found.values()) / len(found)
    print(f"{len(found)} tasks, each at its best | mean {mean:.2f}")


def _read(path: str) -> Any:
  """Reads a JSON file."""
  with tf.io.gfile.GFile(path) as f:
    return json.load(f)
