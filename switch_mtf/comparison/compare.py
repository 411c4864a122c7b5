"""Trains several models in the same way and reports which is better.

`compare` is a `train_model_fn` that trains nothing itself. For each model and
seed it starts `run_t5.py` again with that model's gin file, so every number in
the report comes from a run that a user can start alone. Finished runs are not
repeated.
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
from switch_mtf.training import checkpoint_files
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

  Small models train faster side by side, because one run cannot keep several
  cores busy. On a GPU or TPU, runs take turns.

  Args:
    estimator: the source of the model_dir; other arguments are not used.
    *unused_args: see `estimator`.
    models: name -> gin file, the baseline first.
    seeds: seeds; each model runs once per seed. The pictures show the first.
    title: title of the report.
    at_once: number of runs at the same time.
    params: bindings for each run, applied after its gin file.
    from_runs: model -> name of a binding -> an earlier model. The binding is
      set to the folder of the earlier model's run with the same seed, and the
      model waits for that run. A student's teacher: {"student":
      {"distill_from.checkpoint": "teacher"}}. A file in the folder, such as a
      checkpoint to fine-tune: "teacher/model.ckpt-3000". A run of another
      comparison, whose folder NAME is beside this one's: "../NAME/teacher".
    **unused_kwargs: see `estimator`.

  Raises:
    ValueError: if the model_dir is remote, `at_once` not positive, `from_runs`
      names what is not there, or gin files of a finished run have changed.
    SystemExit: if a run failed or was interrupted.
  """
  errors.require_whole("compare", at_least=1, at_once=at_once)
  from_runs = from_runs or {}
  _check_order(list(models), from_runs)
  model_dir = _local(estimator.model_dir)
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
      _check_others(model_dir, from_runs.get(name, {}), seed)
  for directories in _in_turns(needs, at_once):
    _run({directory: waiting[directory] for directory in directories})
  print(f"{len(waiting)} runs in {duration(time.time() - start)}."
        if waiting else
        f"All {len(jobs)} runs were finished: drawing the report again. "
        "To run them again, use another --model_dir.", file=sys.stderr)
  print(report.write(model_dir, title, list(models), list(seeds)))


def _local(model_dir: str) -> str:
  """Returns a model_dir; raises ValueError if its file system is remote."""
  if "://" in model_dir:
    raise ValueError(
        "compare: --model_dir must be a folder on this machine, with "
        f"model_dir={model_dir}. Choose another --model_dir.")
  return model_dir


def run_dir(model_dir: str, name: str, seed: int) -> str:
  """Returns the folder of one run of a comparison."""
  return os.path.join(model_dir, f"{name}_seed{seed}")


def _used(
    model_dir: str, places: Mapping[str, str], seed: int
) -> tuple[list[str], set[str]]:
  """Returns the bindings that name other runs, and those runs' folders."""
  parts = {name: _parts(place, seed) for name, place in places.items()}
  return ([f"{name} = {os.path.normpath(os.path.join(model_dir, *of))!r}"
           for name, of in parts.items()],
          {os.path.join(model_dir, *of[:2]) for of in parts.values()})


def _parts(place: str, seed: int) -> tuple[str, str, str]:
  """Splits a place in `from_runs` into comparison, run and file."""
  folder, model, file = re.fullmatch(
      r"(\.\./[^/]+/)?([^/]+)(?:/(.+))?", place).groups()
  return folder or "", f"{model}_seed{seed}", file or ""


def _check_others(
    model_dir: str, places: Mapping[str, str], seed: int) -> None:
  """Raises ValueError for a run of another comparison that is not there."""
  for binding, place in places.items():
    path = os.path.normpath(os.path.join(model_dir, *_parts(place, seed)))
    if place.startswith("../") and not (
        os.path.exists(path) or os.path.exists(f"{path}.index")):
      raise ValueError(
          "compare: what is used of another comparison must be there, with "
          f"{binding}={path}, {checkpoint_files.around(path)}. Run that "
          "comparison first, or correct compare.from_runs.")


def _check_order(
    models: Sequence[str], from_runs: Mapping[str, Mapping[str, str]]
) -> None:
  """Raises ValueError unless each model uses only models before it."""
  for name, used in from_runs.items():
    before = models[:models.index(name)] if name in models else []
    for place in used.values():
      if not place.startswith("../") and place.split("/")[0] not in before:
        raise ValueError(
            "compare: a model must use only models that come before it, with "
            f"model={name}, used={place}, models={list(models)}. Correct "
            "compare.from_runs or the order of compare.models.")


def _command(
    gin_file: str, model_dir: str, params: Sequence[str]) -> list[str]:
  """Returns the command of one run.

  Gin files and bindings that the command line adds to the comparison's own gin
  file apply to each run, except the seed and bindings of `compare` itself.

  Args:
    gin_file: gin file of the model.
    model_dir: folder of the run.
    params: bindings of the run.

  Returns:
    The arguments, the program first.
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
  """Returns whether a run with this very command has finished.

  Raises:
    ValueError: if it has, but its gin files have changed since then.
  """
  try:
    with open(os.path.join(directory, FINISHED)) as f:
      found = json.load(f)
  except (OSError, ValueError):
    return False
  now = _what_runs(command)
  # A list comes from an older version, which did not record bindings.
  if isinstance(found, list) or found["command"] != now["command"]:
    return False
  changed = [name for name in {**found["bindings"], **now["bindings"]}
             if found["bindings"].get(name) != now["bindings"].get(name)]
  if changed:
    raise ValueError(
        "compare: the gin files of a finished run must not change, with "
        f"run={directory}, changed={changed}. Choose another --model_dir, or "
        "delete the folder of that run.")
  return True


def _what_runs(command: list[str]) -> dict[str, Any]:
  """Returns the record of a finished run: its flags and all gin bindings."""
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
  """Schedules runs in turns; the runs of a turn run at the same time.

  Args:
    needs: run -> runs that must end before it. Those that are not keys of
      `needs` have already ended.
    at_once: the most runs in a turn.

  Returns:
    The runs of each turn, in order.
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
  """Runs commands at the same time and records those that finish.

  Args:
    commands: folder of the run -> its command and announcement.

  Raises:
    SystemExit: if a command failed or was interrupted.
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
        "The same command resumes from here.", file=sys.stderr)
  code = codes[failed[0]] if failed else INTERRUPTED
  sys.exit(code if code > 0 else INTERRUPTED)
