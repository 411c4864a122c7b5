"""Reports how much of a teacher's gain over a baseline the student keeps.

  python -m switch_mtf.distillation.report --teacher=DIR \
      --student=DIR --baseline=DIR [--output=FILE]

The baseline is a student that was trained without the teacher. Reads the files
of the three runs. The quality of a run is the last neg. log perplexity of the
validation split if `gin/runs/perplexity_eval.gin` has measured it, else the
best score of the task, as in `switch_mtf/comparison/report.py`.
"""

import argparse
import dataclasses
import json
import os
import sys

from switch_mtf.comparison import report
from switch_mtf.training import best_checkpoint, checkpoint_files, metrics

ROLES = ("teacher", "student", "baseline")


@dataclasses.dataclass(frozen=True)
class Trained:
  """The figures of a trained model.

  Attributes:
    model_dir: folder of the run.
    measure: name of the measure: "neg_log_perplexity", or the tasks' names.
    quality: value of the measure; more is better.
    parameters: number of weights, without optimizer slots.
    tokens_per_second: speed of the forward pass in evaluation; None if no
      evaluation was timed.
  """

  model_dir: str
  measure: str
  quality: float
  parameters: int
  tokens_per_second: float | None


def read(model_dir: str) -> Trained:
  """Reads the figures of a run.

  Args:
    model_dir: folder of the run.

  Returns:
    The figures.

  Raises:
    ValueError: if the run has no checkpoint, or was never evaluated.
  """
  if checkpoint_files.last(model_dir) is None:
    raise ValueError(
        "distillation_report: the run must have been trained, with "
        f"model_dir={model_dir}, {checkpoint_files.described(model_dir)}. Give "
        "the model_dir of a run.")
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
  """Computes the figures of Tables 6 to 8 for one student.

  Args:
    teacher: the model that the student learned from.
    student: the distilled model.
    baseline: the student's model, trained without the teacher.

  Returns:
    The three models by role, and
    "share_of_gain": share of the teacher's gain over the baseline that the
      student keeps, None if the teacher has no gain;
    "compression": share of the teacher's parameters that the student saves;
    "speedup": the student's speed in evaluation relative to the teacher's, None
      if either was not timed.

  Raises:
    ValueError: if the models have different measures.
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
  """Formats the figures as a table and a sentence.

  Args:
    found: result of `compare`.

  Returns:
    The lines, joined.
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
  """Prints the report; returns the exit status: 0, or 2 on a ValueError."""
  parser = argparse.ArgumentParser(
      prog="python -m switch_mtf.distillation.report",
      description=__doc__.split("\n")[0])
  for role in ROLES:
    parser.add_argument(f"--{role}", required=True, metavar="DIR",
                        help="model_dir of this run")
  parser.add_argument("--output", metavar="FILE", help="also write it as JSON")
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
