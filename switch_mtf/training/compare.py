"""Trains several models in the same way and reports which is better.

A `train_model_fn` that trains nothing itself: for each model and seed it starts
`run_t5.py` again with that model's gin file, so every number in the report
comes from a run that a user can start alone. What is finished is not run again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import gin
from absl import flags

from switch_mtf.training import report
from switch_mtf.training.hooks import INTERRUPTED, duration

FINISHED = "finished.json"


@gin.configurable
def compare(
    estimator: Any,
    *unused_args,
    models: dict[str, str] = gin.REQUIRED,
    seeds: Sequence[int] = (0,),
    title: str = gin.REQUIRED,
    **unused_kwargs,
) -> None:
  """Runs each model with each seed, then writes `<model_dir>/report/`.

  Args:
    estimator: gives the model_dir; the rest of what a `train_model_fn` gets is
      not used.
    *unused_args: see `estimator`.
    models: name to gin file, the baseline first.
    seeds: one run of each model for each; the pictures show the first.
    title: of the report.
    **unused_kwargs: see `estimator`.

  Raises:
    ValueError: if the model_dir is on a remote file system.
    SystemExit: if a run failed or was interrupted.
  """
  model_dir = estimator.model_dir
  if "://" in model_dir:
    raise ValueError(
        "compare: --model_dir must be a folder of this machine, with "
        f"model_dir={model_dir}. Choose another --model_dir.")
  jobs = [(name, path, seed) for seed in seeds for name, path in models.items()]
  start = time.time()
  ran = 0
  for number, (name, path, seed) in enumerate(jobs, start=1):
    directory = run_dir(model_dir, name, seed)
    command = _command(path, seed, directory)
    if _is_finished(directory, command):
      continue
    print(f"[{number}/{len(jobs)}] {name}, seed {seed}", file=sys.stderr)
    _run(command, directory)
    ran += 1
  print(f"{ran} runs in {duration(time.time() - start)}." if ran else
        f"All {len(jobs)} runs were finished: drawing the report again. "
        "Another --model_dir starts anew.", file=sys.stderr)
  print(report.write(model_dir, title, list(models), list(seeds)))


def run_dir(model_dir: str, name: str, seed: int) -> str:
  """Where one run of a comparison is kept."""
  return os.path.join(model_dir, f"{name}_seed{seed}")


def _command(gin_file: str, seed: int, model_dir: str) -> list[str]:
  """The command of one run.

  What the command line adds to the comparison's own gin file holds for each
  run, but for the seed and for `compare` itself.
  """
  files = [gin_file, *flags.FLAGS.gin_file[1:]]
  params = [param for param in flags.FLAGS.gin_param or []
            if not param.startswith("compare.")]
  return [sys.executable, os.path.abspath(sys.argv[0]),
          f"--model_dir={model_dir}",
          *(f"--module_import={name}" for name in flags.FLAGS.module_import),
          *(f"--gin_file={path}" for path in files),
          *(f"--gin_param={param}" for param in [*params, f"seed = {seed}"])]


def _is_finished(directory: str, command: list[str]) -> bool:
  """Whether this very command has run to its end."""
  try:
    with open(os.path.join(directory, FINISHED)) as f:
      return json.load(f) == command[2:]
  except (OSError, ValueError):
    return False


def _run(command: list[str], directory: str) -> None:
  """Runs one command to its end and notes that it has ended."""
  child = subprocess.Popen(command)
  before = signal.signal(
      signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
  try:
    code = child.wait()
  except KeyboardInterrupt:  # the terminal has sent it to the child as well
    code = child.wait() or INTERRUPTED
  finally:
    signal.signal(signal.SIGTERM, before)
  if code:
    stopped = code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
    print("Stopped before the end." if stopped else
          f"{os.path.basename(directory)} failed.",
          "The same command goes on from here.", file=sys.stderr)
    sys.exit(code if code > 0 else INTERRUPTED)
  with open(os.path.join(directory, FINISHED), "w") as f:
    json.dump(command[2:], f)
