"""Trains several models in the same way and reports which is better.

A `train_model_fn` that trains nothing itself: for each model and seed it starts
`run_t5.py` again with that model's gin file, so every number in the report
comes from a run that a user can start alone. What is finished is not run again.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gin
import tensorflow.compat.v1 as tf
from absl import flags

from switch_mtf import errors, gin_files
from switch_mtf.comparison import report, side_by_side
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
    params: Sequence[str] = (),
    from_runs: Mapping[str, Mapping[str, str]] | None = None,
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
    params: bindings for each run, after its gin file.
    from_runs: model -> binding -> a model before it, whose folder with the same
      seed is bound: a student's teacher, as in {"student":
      {"distill_from.checkpoint": "teacher"}}, or what is fine-tuned, "teacher/
      model.ckpt-3000". It waits for that run. "../NAME/teacher" is in another
      comparison, whose folder NAME is beside this one's.
    **unused_kwargs: see `estimator`.

  Raises:
    ValueError: if the model_dir is on a remote file system, `at_once` is not a
      positive whole number, `from_runs` names no model that comes before, or
      gin files have changed since one of their runs was finished.
    SystemExit: if a run failed or was interrupted.
  """
  errors.require_whole("compare", at_least=1, at_once=at_once)
  from_runs = from_runs or {}
  _check_order(list(models), from_runs)
  model_dir = estimator.model_dir
  _check_local(model_dir)
  start = time.time()
  jobs = [(name, seed) for seed in seeds for name in models]
  waiting, needs = {}, {}
  for number, (name, seed) in enumerate(jobs, start=1):
    directory = run_dir(model_dir, name, seed)
    used, needed = _used(model_dir, from_runs.get(name, {}), seed)
    command = _command(
        models[name], directory, [*params, f"seed = {seed}", *used])
    announcement = f"[{number}/{len(jobs)}] {name}, seed {seed}"
    if not _is_finished(directory, command):
      waiting[directory], needs[directory] = (command, announcement), needed
  for directories in _in_turns(needs, at_once):
    _run({directory: waiting[directory] for directory in directories})
  print(f"{len(waiting)} runs in {duration(time.time() - start)}."
        if waiting else
        f"All {len(jobs)} runs were finished: drawing the report again. "
        "Another --model_dir starts anew.", file=sys.stderr)
  print(report.write(model_dir, title, list(models), list(seeds)))


def _check_local(model_dir: str) -> None:
  """Raises ValueError for a model_dir on a remote file system."""
  if "://" in model_dir:
    raise ValueError(
        "compare: --model_dir must be a folder of this machine, with "
        f"model_dir={model_dir}. Choose another --model_dir.")


def run_dir(model_dir: str, name: str, seed: int) -> str:
  """Where one run of a comparison is kept."""
  return os.path.join(model_dir, f"{name}_seed{seed}")


def _used(
    model_dir: str, places: Mapping[str, str], seed: int
) -> tuple[list[str], set[str]]:
  """What a run uses of others: the bindings, and the others' folders."""
  parts = {name: _parts(place, seed) for name, place in places.items()}
  return ([f"{name} = {os.path.normpath(os.path.join(model_dir, *of))!r}"
           for name, of in parts.items()],
          {os.path.join(model_dir, *of[:2]) for of in parts.values()})


def _parts(place: str, seed: int) -> tuple[str, str, str]:
  """Comparison, run and file of a place that `from_runs` names."""
  folder, model, file = re.fullmatch(
      r"(\.\./[^/]+/)?([^/]+)(?:/(.+))?", place).groups()
  return folder or "", f"{model}_seed{seed}", file or ""


def _check_order(
    models: Sequence[str], from_runs: Mapping[str, Mapping[str, str]]
) -> None:
  """Raises ValueError unless what a model uses comes before it."""
  for name, used in from_runs.items():
    before = models[:models.index(name)] if name in models else []
    for place in used.values():
      if not place.startswith("../") and place.split("/")[0] not in before:
        raise ValueError(
            "compare: a run must use one that comes before it, with "
            f"model={name}, used={place}, models={list(models)}. Correct "
            "compare.from_runs or the order of compare.models.")


def _command(
    gin_file: str, model_dir: str, params: Sequence[str]) -> list[str]:
  """The command of one run.

  What the command line adds to the comparison's own gin file holds for each
  run, but for the seed and for `compare` itself.

  Args:
    gin_file: of the model.
    model_dir: of the run.
    params: bindings of the run.
  """
  files = [gin_file, *flags.FLAGS.gin_file[1:]]
  given = [param for param in flags.FLAGS.gin_param or []
           if not param.startswith("compare.")]
  return [sys.executable, os.path.abspath(sys.argv[0]),
          f"--model_dir={model_dir}",
          *(f"--module_import={name}" for name in flags.FLAGS.module_import),
          *(f"--gin_file={path}" for path in files),
          *(f"--gin_param={param}" for param in [*given, *params])]


def _is_finished(directory: str, command: list[str]) -> bool:
  """Whether this very command has run to its end.

  Raises:
    ValueError: if it has, but its gin files have changed since then.
  """
  try:
    with open(os.path.join(directory, FINISHED)) as f:
      found = json.load(f)
  except (OSError, ValueError):
    return False
  now = _what_runs(command)
  # A list is of a run from before bindings were noted.
  if isinstance(found, list) or found["command"] != now["command"]:
    return False
  changed = [name for name in {**found["bindings"], **now["bindings"]}
             if found["bindings"].get(name) != now["bindings"].get(name)]
  if changed:
    raise ValueError(
        "compare: a finished run must be of the gin files as they are, with "
        f"run={directory}, changed={changed}. Choose another --model_dir, or "
        "delete the folder of that run.")
  return True


def _what_runs(command: list[str]) -> dict[str, Any]:
  """What is noted of a finished run: its flags, and all that gin files bind."""
  given = {flag: [arg.removeprefix(f"--{flag}=") for arg in command
                  if arg.startswith(f"--{flag}=")]
           for flag in ("gin_file", "gin_param")}
  bindings = gin_files.read(
      given["gin_file"], given["gin_param"], [gin_files.T5_FOLDER])
  return {"command": command[2:], "bindings": {
      f"{b.scope}/{b.name}" if b.scope else b.name: repr(b.value)
      for b in bindings}}


def _in_turns(
    needs: Mapping[str, Collection[str]], at_once: int) -> list[list[str]]:
  """Those that run at the same time, in turns.

  Args:
    needs: run -> those that must have ended before it; of these, the ones that
      are no keys have.
    at_once: how many can run at the same time.
  """
  if flags.FLAGS.tpu or tf.config.list_physical_devices("GPU"):
    at_once = 1
  at_once = min(at_once, os.cpu_count() or 1)
  turns, left = [], dict(needs)
  while left:
    ready = [run for run in left if left.keys().isdisjoint(left[run])]
    turns.append(ready[:at_once])
    for run in turns[-1]:
      del left[run]
  return turns


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
        json.dump(_what_runs(command), f, indent=1)
  if not any(codes.values()):
    return
  stopped = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
  failed = [name for name, code in codes.items() if code not in (0, *stopped)]
  print(f"{' and '.join(failed)} failed." if failed else
        "Stopped before the end.",
        "The same command goes on from here.", file=sys.stderr)
  code = codes[failed[0]] if failed else INTERRUPTED
  sys.exit(code if code > 0 else INTERRUPTED)
