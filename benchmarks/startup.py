"""Measures how long a user waits for the first step and the first answer.

  python -m benchmarks.startup

Both times are of `run_t5.py` with the demo's Switch model, from the start of
the process:

  first_step    until the record of step 1 is in `metrics.jsonl`. This includes
                what every run does before its first step: imports, reading
                data, building the graph, and saving the checkpoint of step 0.
                Later checkpoints are not included.
  first_answer  until one decoded line, as long as the demo's targets, is
                written. This includes reading the checkpoint.

Each process is stopped once its file is written. An untimed run comes first: it
prepares the data set, as the first run on a machine does, and leaves the
checkpoint for decoding.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim, Group, Job
from benchmarks.record import ROOT
from benchmarks.spec import Spec

NAME = "startup"
TARGET_SECONDS = 12
DEMO = "gin/experiments/demo_switch.gin"
TRAIN = (f"--gin_file={DEMO}", "--gin_param=progress.record_steps = 1")
INFER = ("--gin_file=infer.gin", "--gin_file=greedy_decode.gin",
         "--gin_param=infer_checkpoint_step = -1")
# Sizes of the demo, by which a record identifies model and task.
DEMO_SPEC = dict(experts=16, vocabulary=1000, batch=128, inputs=24, targets=6)
POLL_SECONDS = 0.01
LIMIT_SECONDS = 300


def run_t5(model_dir: str, *flags: str) -> list[str]:
  """Returns the command line of a run."""
  return [sys.executable, "run_t5.py", f"--model_dir={model_dir}", *flags]


def seconds_until(command: Sequence[str], path: str) -> float:
  """Starts a process, waits until it has written a file, and stops it.

  Args:
    command: command line of the process.
    path: path of the file.

  Returns:
    Seconds from the start of the process to the file.

  Raises:
    RuntimeError: if the process ends without the file, or does not write it
      within `LIMIT_SECONDS`.
  """
  with tempfile.TemporaryFile("w+", errors="replace") as log:
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
      while not _written(path):
        seconds = time.perf_counter() - start
        ended = process.poll() is not None
        if (ended and not _written(path)) or seconds > LIMIT_SECONDS:
          log.seek(0)
          raise RuntimeError(
              f"{NAME}: the run must write {os.path.basename(path)}, with "
              f"seconds={seconds:.0f}, exit code={process.poll()}. Fix the "
              f"error in its log:\n{log.read()[-harness.LOG_CHARACTERS:]}")
        time.sleep(POLL_SECONDS)
      return time.perf_counter() - start
    finally:
      process.kill()
      process.wait()


def _written(path: str) -> bool:
  # Both files appear with their whole content, when they are closed.
  with contextlib.suppress(OSError):
    return os.path.getsize(path) > 0
  return False


def measure_group(
    group: Group, alternations: int, steps: int, tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
  """Measures both times in alternating turns; see `harness.measure`.

  Args:
    group: group of the two jobs.
    alternations: number of measurements of each job.
    steps: not used.
    tell: function that takes lines of progress.

  Returns:
    Label -> measurements of the job.
  """
  del steps
  seconds: dict[str, list[float]] = {job.label: [] for job in group.jobs}
  with tempfile.TemporaryDirectory() as folder:
    tell("an untimed run prepares the data and the checkpoint")
    trained = os.path.join(folder, "trained")
    subprocess.run(
        run_t5(trained, *TRAIN, "--gin_param=train_steps = 1",
               "--gin_param=train_then.phases = []"),
        cwd=ROOT, check=True, capture_output=True)
    for turn in range(alternations):
      tell(f"turn {turn + 1} of {alternations}")
      seconds["first_step"].append(_first_step(f"{folder}/step_{turn}"))
      seconds["first_answer"].append(_first_answer(trained, folder, turn))
  return {job.label: harness.figures(job, seconds[job.label])
          for job in group.jobs}


def _first_step(model_dir: str) -> float:
  return seconds_until(
      run_t5(model_dir, *TRAIN), os.path.join(model_dir, "metrics.jsonl"))


def _first_answer(trained: str, folder: str, turn: int) -> float:
  asked = os.path.join(folder, "asked.txt")
  answer = os.path.join(folder, f"answer_{turn}.txt")
  with open(asked, "w") as f:
    f.write("The whale <extra_id_0> the sea.\n")
  # T5 appends the step to the name.
  return seconds_until(
      run_t5(trained,
             f"--gin_file={os.path.join(trained, 'operative_config.gin')}",
             *INFER, f"--gin_param=input_filename = '{asked}'",
             f"--gin_param=output_filename = '{answer}'"), f"{answer}-1")


def suite() -> harness.Suite:
  """Builds the suite: what is measured and claimed."""
  group = Group("demo", (
      Job("first_step", Spec("ours", "train", **DEMO_SPEC)),
      Job("first_answer", Spec("ours", "decode", **DEMO_SPEC))))
  return harness.Suite(NAME, (group,), (
      Claim(f"{NAME}/first_step", "demo", "first_step", None, "step_seconds",
            TARGET_SECONDS, at_most=True),
      Claim(f"{NAME}/first_answer", "demo", "first_answer", None,
            "step_seconds", at_most=True)))


def options(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  return harness.parser(NAME, alternations=3).parse_args(arguments)


if __name__ == "__main__":
  # sys.exit makes `seconds_until` kill its run, which would train for minutes.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  harness.run(suite(), options(sys.argv[1:]), measure_group)
