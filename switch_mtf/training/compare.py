"""Trains several models in the same way and reports which is better.

A `train_model_fn` that trains nothing itself: for each model and seed it starts
`run_t5.py` again with that model's gin file, so every number in the report
comes from a run that a user can start alone. What is finished is not run again.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import gin
import tensorflow.compat.v1 as tf
from absl import flags

from switch_mtf import checks
from switch_mtf.training import report, side_by_side
from switch_mtf.training.hooks import INTERRUPTED, duration

FINISHED = "finished.json"


@gin.configurable
def compare(
    estimator: Any,
    *unused_args,
    models: dict[str, str] = gin.REQUIRED,
    seeds: Sequence[int] = (0,),
    title: str = gin.REQUIRED,
    at_once: int = 1,
    **unused_kwargs,
) -> None:
  """Runs each model with each seed, then writes `<model_dir>/report/`.

  Small models run faster side by side, each on its share of the cores: one run
  cannot keep several busy. Where there is a GPU or a TPU, they take turns.

  Args:
    estimator: gives the model_dir; the rest of what a `train_model_fn` gets is
      not used.
    *unused_args: see `estimator`.
    models: name to gin file, the baseline first.
    seeds: one run of each model for each; the pictures show the first.
    title: of the report.
    at_once: how many run at the same time.
    **unused_kwargs: see `estimator`.

  Raises:
    ValueError: if the model_dir is on a remote file system, or `at_once` is not
      a positive whole number.
    SystemExit: if a run failed or was interrupted.
  """
  checks.whole("compare", at_least=1, at_once=at_once)
  model_dir = estimator.model_dir
  if "://" in model_dir:
    raise ValueError(
        "compare: --model_dir must be a folder of this machine, with "
        f"model_dir={model_dir}. Choose another --model_dir.")
  jobs = [(name, path, seed) for seed in seeds for name, path in models.items()]
  start = time.time()
  waiting = {}
  for number, (name, path, seed) in enumerate(jobs, start=1):
    directory = run_dir(model_dir, name, seed)
    command = _command(path, seed, directory)
    announcement = f"[{number}/{len(jobs)}] {name}, seed {seed}"
    if not _is_finished(directory, command):
      waiting[directory] = command, announcement
  for directories in _in_turns(list(waiting), at_once):
    _run({directory: waiting[directory] for directory in directories})
  print(f"{len(waiting)} runs in {duration(time.time() - start)}."
        if waiting else
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


def _in_turns(runs: list[str], at_once: int) -> list[list[str]]:
  """Those that run at the same time, in turns."""
  if flags.FLAGS.tpu or tf.config.list_physical_devices("GPU"):
    at_once = 1
  at_once = min(at_once, os.cpu_count() or 1)
  return [runs[i:i + at_once] for i in range(0, len(runs), at_once)]


def _run(commands: dict[str, tuple[list[str], str]]) -> None:
  """Runs commands to their end and notes that they have ended.

  Args:
    commands: folder of the run -> its command, and what to announce it with.
  """
  for _, announcement in commands.values():
    print(announcement, file=sys.stderr)
  codes = side_by_side.run({
      os.path.basename(directory): command
      for directory, (command, _) in commands.items()})
  for directory, (command, _) in commands.items():
    if codes[os.path.basename(directory)] == 0:
      with open(os.path.join(directory, FINISHED), "w") as f:
        json.dump(command[2:], f)
  if not any(codes.values()):
    return
  stopped = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
  failed = [name for name, code in codes.items() if code not in (0, *stopped)]
  print(f"{' and '.join(failed)} failed." if failed else
        "Stopped before the end.",
        "The same command goes on from here.", file=sys.stderr)
  code = codes[failed[0]] if failed else INTERRUPTED
  sys.exit(code if code > 0 else INTERRUPTED)
