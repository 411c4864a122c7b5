"""Builds the graph of every gin file and trains the small ones for two steps.

  python -m benchmarks.gin_files [--resume]

A row is something that a user can start: an experiment; a model alone, planned
with the paper's pre-training; or a layout that no experiment uses, with a model
that suits it. Each row is planned at its full size. Files of `gin/runs/` have
no rows: experiments include them, or they go on top of a run, which
`tests/test_run_t5.py` tests.

Writes `results/planning/gin_files.json` and, from it, `gin_files.md`, a table
of what the rows cost. Takes an hour on two cores, two rows at a time.
"""

import argparse
import concurrent.futures
import dataclasses
import logging
import math
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.record import ROOT, Record

NAME = "gin_files"
FOLDER = os.path.join(ROOT, "results", "planning")
# Stands in for the teacher that the user of a distillation chooses.
TEACHER = "gin/experiments/small_scale/switch_e16.gin"
# Needs a text of the user's.
OWN_TEXT = "gin/experiments/own_text.gin"
SMALL_RUN = "benchmarks/gin/planned.gin"
CPU_MODELS = ("tiny", "switch_tiny_e16", "mini", "switch_mini_e16", "small",
              "switch_small_e16")
# Layouts that no experiment uses -> a model for each. A cluster's processes are
# started by hand, so its layout is only planned.
DEMO = "gin/experiments/demo_switch.gin"
BASE = "gin/models/switch_base_e128.gin"
MODEL_OF_LAYOUT = {
    "cpu_2_data": DEMO, "cpu_2_model": DEMO, "cpu_2_expert": DEMO,
    "cpu_4_expert_model": DEMO, "cpu_4_expert_replicas": DEMO,
    "cpu_4_model_data": DEMO, "cpu_cluster_2_expert": DEMO,
    "single_bfloat16": DEMO,
    "gpu_4_data": BASE, "gpu_4_expert": BASE, "gpu_4_expert_model": BASE,
    "v3_32_model": "gin/models/t5_xxl.gin",
    "v3_1024_expert_model": "gin/models/switch_xxl_e64_paper.gin",
}
TWO_STEPS = ("train_steps = 2", "warmup_steps = 1",
             "save_checkpoints_steps = 2", "progress.record_steps = 1",
             "train_then.phases = []")
KEPT = ("device", "mesh_shape", "cores", "batch_size", "train_steps",
        "num_microbatches", "parameters", "active_parameters_per_token",
        "flops_per_sequence", "fits")


@dataclasses.dataclass(frozen=True)
class Row:
  """A run that a user can start.

  Attributes:
    name: the gin file that the row checks.
    files: all gin files of the run.
    small: whether one CPU can train it.
    device: device to plan for; None for the planner's choice.
    params: gin bindings that the run needs.
  """

  name: str
  files: tuple[str, ...]
  small: bool
  device: str | None = None
  params: tuple[str, ...] = ()


def experiments() -> list[str]:
  """Returns the experiments that can be started, relative to the repository."""
  found = (p.relative_to(ROOT).as_posix()
           for p in pathlib.Path(ROOT).glob("gin/experiments/**/*.gin"))
  return sorted(p for p in found if not _is_fragment(p))


def _is_fragment(path: str) -> bool:
  """Returns whether a file exists only for others to include."""
  return pathlib.PurePath(path).name.startswith("_")


def rows() -> list[Row]:
  """Returns all rows to check."""
  from switch_mtf import gin_files
  found = []
  for path in experiments():
    unset = gin_files.unset(path)
    params = [f"{name} = 'none'" for name in unset]
    if "distill_from.checkpoint" in unset and "/paper/" not in path:
      params.append(f"distill_from.config = '{TEACHER}'")
    if path == OWN_TEXT:
      params.append("local_text.path = 'docs/paper.md'")
    # A run that needs another run's checkpoint cannot be trained alone.
    found.append(Row(path, (path,), small="/paper/" not in path and not unset,
                     params=tuple(params)))
  for path in sorted(pathlib.Path(ROOT, "gin/models").glob("*.gin")):
    name = path.relative_to(ROOT).as_posix()
    small = path.stem in CPU_MODELS
    if _is_fragment(name):
      continue
    found.append(Row(name, (name, SMALL_RUN) if small else (name,), small))
  for stem, model in MODEL_OF_LAYOUT.items():
    name = f"gin/layouts/{stem}.gin"
    found.append(Row(
        name, (model, name), small=model == DEMO and "cluster" not in stem,
        device={"gpu": "h100", "v3": "tpu_v3"}.get(stem.split("_")[0], "cpu"),
        params=("SwitchFFN.group_size = 64",) if model == DEMO else ()))
  return found


def plan(row: Row) -> dict[str, Any]:
  """Plans a row in this process.

  Returns:
    The costs in `KEPT` and some totals; "compares" is whether the row only
      starts other runs, so that it has no steps of its own to train. Only
      "error" if the row cannot be planned.
  """
  from switch_mtf.comparison.compare import compare
  from switch_mtf.planning.plan import plan as make
  begun = time.perf_counter()
  try:
    made = make(row.files, ["offline.value = True", *row.params],
                device=row.device)
  except Exception as error:  # the remaining rows must still be checked
    return {"error": f"{type(error).__name__}: {error}"}
  figures = made.as_dict()
  return {name: figures[name] for name in KEPT} | {
      "training_flops": made.training_flops,
      "memory_per_core": figures["memory_per_core"]["peak"],
      "bytes_sent_per_core_and_step": sum(
          kind["bytes"] for kind in figures["communication_per_step"]),
      "compares": made.configuration.train_model_fn is compare,
      "seconds": time.perf_counter() - begun}


def two_steps(row: Row) -> dict[str, Any]:
  """Trains a row for two steps in its own process.

  Returns:
    "losses" of the steps and "seconds"; or "error".
  """
  from switch_mtf.training import metrics
  begun = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
        [sys.executable, "run_t5.py", f"--model_dir={folder}",
         *(f"--gin_file={path}" for path in row.files),
         *(f"--gin_param={param}" for param in (*TWO_STEPS, *row.params))],
        cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
      return {"error": (done.stdout + done.stderr)[-2000:]}
    losses = [record["loss"] for record in metrics.read(folder, "train")]
  if len(losses) != 2 or not all(map(math.isfinite, losses)):
    return {"error": "two finite losses must be recorded, with "
            f"losses={losses}"}
  return {"losses": losses, "seconds": time.perf_counter() - begun}


def check(row: Row) -> dict[str, Any]:
  """Plans a row and, if it is small, trains it for two steps."""
  found = {"files": row.files, "params": row.params, "plan": plan(row)}
  if row.small and not found["plan"].get("compares", True):
    found["run"] = two_steps(row)
  return found


def error_of(found: dict[str, Any]) -> str | None:
  """Returns the error of a row; None if the row is right."""
  return found["plan"].get("error") or found.get("run", {}).get("error")


def _start() -> None:
  """Prepares a process of the pool for planning."""
  logging.getLogger().setLevel(logging.CRITICAL)
  import tasks  # noqa: F401
  from switch_mtf.planning.configuration import start_graph_mode
  start_graph_mode()


def _done(todo: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
  """Checks one row per core at a time; yields each row when it is done."""
  with concurrent.futures.ProcessPoolExecutor(
      os.cpu_count(), multiprocessing.get_context("spawn"), _start) as pool:
    futures = {pool.submit(check, row): row for row in todo}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()


def table(groups: Sequence[dict[str, Any]]) -> str:
  """Returns a Markdown table of what the rows cost."""
  lines = [
      "# What each gin file costs", "",
      "Planned, by `python -m benchmarks.gin_files`; see docs/planning.md. "
      "FLOPs are forward, of one sequence; the memory of a CPU is that of the "
      "whole process.", "",
      "| file | parameters | used per token | FLOPs per sequence | cores | "
      "batch | steps | GB per core | GB sent per core and step | fits |",
      "|---|--:|--:|--:|---|--:|--:|--:|--:|---|"]
  for group in sorted(groups, key=lambda g: g["name"]):
    found = group["measurements"]["plan"]
    if "error" in found:
      continue
    lines.append(
        f"| `{group['name']}` | {found['parameters']:,} | "
        f"{found['active_parameters_per_token']:,} | "
        f"{found['flops_per_sequence']:.3g} | "
        f"{found['cores']:,} {found['device']} | {found['batch_size']:,} | "
        f"{found['train_steps']:,} | {found['memory_per_core'] / 1e9:.1f} | "
        f"{found['bytes_sent_per_core_and_step'] / 1e9:.2f} | "
        f"{'yes' if found['fits'] else 'no'} |")
  return "\n".join(lines) + "\n"


def main() -> int:
  """Checks every row; returns 0 if all are right, else 1."""
  parser = argparse.ArgumentParser(
      prog=f"python -m benchmarks.{NAME}", description=__doc__.split("\n")[0])
  parser.add_argument("--resume", action="store_true",
                      help="check only the rows that the record lacks")
  arguments = parser.parse_args()
  record = Record(os.path.join(FOLDER, f"{NAME}.json"), NAME, {},
                  arguments.resume, same_machine=False)
  todo = [row for row in rows() if record.find(0, row.name) is None]
  begun = time.perf_counter()
  for count, (row, found) in enumerate(_done(todo), 1):
    record.add(0, row.name, os.getloadavg()[0], found)
    seconds = time.perf_counter() - begun
    left = seconds / count * (len(todo) - count)
    print(f"{count}/{len(todo)} {row.name}: {error_of(found) or 'ok'} | "
          f"{left / 60:.0f} min left", flush=True)
  groups = record.data["groups"]
  wrong = [g["name"] for g in groups if error_of(g["measurements"])]
  ran = sum("run" in g["measurements"] for g in groups)
  record.finish([{"rows": len(groups), "trained": ran, "wrong": wrong,
                  "seconds_of_rows": sum(
                      part.get("seconds", 0.0) for g in groups
                      for part in g["measurements"].values()
                      if isinstance(part, dict))}])
  with open(os.path.join(FOLDER, f"{NAME}.md"), "w") as f:
    f.write(table(groups))
  print(f"{NAME}: {len(groups)} graphs built, {ran} trained for two steps, "
        f"{len(wrong)} wrong {wrong or ''} in "
        f"{(time.perf_counter() - begun) / 60:.0f} min")
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
