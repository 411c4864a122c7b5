"""What a distillation was worth: teacher, student and a student without one.

  python -m switch_mtf.distillation.report --teacher=DIR \
      --student=DIR --baseline=DIR [--output=FILE]

Reads what the three runs left behind. Their quality is the last neg. log
perplexity of the validation split, where `gin/runs/perplexity_eval.gin` has
measured it, else the best score of the task, as in `report.py`.
"""

import argparse
import dataclasses
import json
import os
import sys

import tensorflow.compat.v1 as tf

from switch_mtf.comparison import report
from switch_mtf.training import best_checkpoint, metrics

ROLES = ("teacher", "student", "baseline")


@dataclasses.dataclass(frozen=True)
class Trained:
  """What is known of a run.

  Attributes:
    model_dir: of the run.
    measure: what quality is of: "neg_log_perplexity", or the tasks' names.
    quality: more is better.
    parameters: weights, without the optimizer's.
    tokens_per_second: of the forward pass in evaluation; None if no evaluation
      was timed.
  """

  model_dir: str
  measure: str
  quality: float
  parameters: int
  tokens_per_second: float | None


def read(model_dir: str) -> Trained:
  """Reads a run.

  Args:
    model_dir: of the run.

  Raises:
    ValueError: if it has no checkpoint, or was never evaluated.
  """
  if tf.train.latest_checkpoint(model_dir) is None:
    raise ValueError(
        "distillation_report: the run must have been trained, with "
        f"model_dir={model_dir}, checkpoint=None. Give the model_dir of a run.")
  found = report.validation(model_dir, metrics.read(model_dir, "eval"))
  measure = report.LOSS if report.LOSS in found[-1] else report.SCORE
  judged_by = ([measure] if measure == report.LOSS
               else sorted(best_checkpoint.scores(model_dir)))
  speeds = metrics.read(model_dir, "eval_speed")
  return Trained(
      model_dir, "+".join(judged_by), report.quality(found, measure),
      report.count_parameters(model_dir),
      speeds[-1]["tokens_per_second"] if speeds else None)


def compare(teacher: Trained, student: Trained, baseline: Trained) -> dict:
  """The figures of Tables 6 to 8 for one student.

  Args:
    teacher: that was learnt from.
    student: that learnt.
    baseline: as the student, but without the teacher.

  Returns:
    The three, "share_of_gain": what the student keeps of the teacher's gain
    over the baseline, None where the teacher has none; "compression": share of
    the teacher's parameters that are gone; "speedup": of the student in
    evaluation, None if it was not timed.

  Raises:
    ValueError: if they were judged by different measures.
  """
  runs = dict(zip(ROLES, (teacher, student, baseline), strict=True))
  if len({run.measure for run in runs.values()}) > 1:
    raise ValueError(
        "distillation_report: the runs must have been evaluated alike, with "
        + ", ".join(f"{role}={run.measure}" for role, run in runs.items())
        + ". Evaluate them with the same gin file and task.")
  gain = teacher.quality - baseline.quality
  timed = teacher.tokens_per_second and student.tokens_per_second
  return {
      **{role: dataclasses.asdict(run) for role, run in runs.items()},
      "share_of_gain": (
          (student.quality - baseline.quality) / gain if gain > 0 else None),
      "compression": 1 - student.parameters / teacher.parameters,
      "speedup": (student.tokens_per_second / teacher.tokens_per_second
                  if timed else None)}


def text(found: dict) -> str:
  """The figures as a table and a sentence.

  Args:
    found: by `compare`.
  """
  lines = [f"{'':10}{'parameters':>14}{found['teacher']['measure']:>24}"
           f"{'tokens/s':>12}"]
  for role in ROLES:
    run = found[role]
    speed = run["tokens_per_second"]
    lines.append(f"{role:10}{run['parameters']:14,}{run['quality']:24.4f}"
                 f"{f'{speed:,.0f}' if speed else '-':>12}")
  share = found["share_of_gain"]
  kept = ("the teacher is no better than the baseline" if share is None else
          f"the student keeps {share:.0%} of the teacher's gain")
  faster = (f", at {found['speedup']:.2f} times its speed"
            if found["speedup"] else "")
  lines.append(f"{kept}, with {found['compression']:.1%} fewer parameters"
               f"{faster}.")
  return "\n".join(lines)


def main() -> int:
  """Prints the report of what is named; 0, or 2 if something is wrong."""
  parser = argparse.ArgumentParser(
      prog="python -m switch_mtf.distillation.report",
      description=__doc__.split("\n")[0])
  for role in ROLES:
    parser.add_argument(f"--{role}", required=True, metavar="DIR",
                        help="its model_dir")
  parser.add_argument("--output", metavar="FILE", help="write it as JSON, too")
  arguments = parser.parse_args()
  try:
    found = compare(*(read(getattr(arguments, role)) for role in ROLES))
  except ValueError as error:
    print(error, file=sys.stderr)
    return 2
  print(text(found))
  if arguments.output:
    os.makedirs(os.path.dirname(arguments.output) or ".", exist_ok=True)
    with open(arguments.output, "w") as f:
      json.dump(found, f, indent=1)
  return 0


if __name__ == "__main__":
  sys.exit(main())
