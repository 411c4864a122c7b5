"""The file of a suite: what was measured, where, and what it comes to.

Written whole after every group, so that a suite that was interrupted can go on
(`--resume`) from the groups that it has.
"""

import glob
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ("tensorflow", "mesh-tensorflow", "t5", "torch", "transformers",
            "numpy")


def machine() -> dict[str, Any]:
  """Processor, cores, memory, versions and commit: what figures depend on."""
  versions = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return {"processor": _processor(), "cores": os.cpu_count(),
          "memory_gb": round(memory / 1e9, 1), "system": platform.system(),
          "versions": versions, "commit": _commit()}


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as f:
      names = [line.split(":", 1)[1].strip() for line in f
               if line.startswith("model name")]
  except OSError:
    names = []
  return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
  """The commit, with "-dirty" if files other than results differ from it."""
  def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True,
        text=True).stdout.strip()

  try:
    changed = git("status", "--porcelain", "--", ".", ":!results")
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


class Record:
  """The file of a suite.

  Attributes:
    data: what is in it.
  """

  def __init__(self, path: str, suite: str, options: dict[str, Any],
               resume: bool, same_machine: bool = True):
    """Begins a new record, or goes on with the one on disk.

    Args:
      path: of the file.
      suite: its name.
      options: of the suite.
      resume: whether to go on.
      same_machine: whether the one on disk must be of this machine and commit.
        If not, its groups note of which they are.
    """
    self.path = path
    self._same_machine = same_machine
    self.data = {"suite": suite, "complete": False, "machine": machine(),
                 "options": options, "groups": [], "results": []}
    if resume and os.path.exists(path):
      self._resume()

  def _resume(self) -> None:
    with open(self.path) as f:
      old = json.load(f)
    if not self._same_machine:
      for group in old["groups"]:
        for name in ("commit", "processor"):
          group.setdefault(name, old["machine"][name])
      old["machine"] = self.data["machine"]
    for name in ("suite", "machine", "options"):
      if old[name] != self.data[name]:
        raise ValueError(
            f"{self.data['suite']}: --resume must go on with the same {name}, "
            f"with before={old[name]}, now={self.data[name]}. Leave out "
            "--resume to begin anew.")
    self.data["groups"] = old["groups"]

  def find(self, run: int, group: str) -> dict[str, Any] | None:
    """The measurements of a group in a run, by label, if they are there."""
    for entry in self.data["groups"]:
      if (entry["run"], entry["name"]) == (run, group):
        return entry["measurements"]
    return None

  def add(self, run: int, group: str, load_average: float,
          measurements: dict[str, dict[str, Any]]) -> None:
    """Adds a group and saves.

    Args:
      run: which repetition of the suite, from 0.
      group: its name.
      load_average: of the machine before it, over the last minute.
      measurements: by label.
    """
    self.data["groups"].append({
        "run": run, "name": group, "load_average": load_average,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "measurements": measurements})
    self.save()

  def finish(self, results: Sequence[dict[str, Any]]) -> None:
    """Adds what the claims come to, and saves."""
    self.data |= {"complete": True, "results": list(results)}
    self.save()

  def save(self) -> None:
    """Replaces the file at once: it is never half written."""
    os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
    temporary = f"{self.path}.tmp"
    with open(temporary, "w") as f:
      json.dump(self.data, f, indent=1)
      f.write("\n")
    os.replace(temporary, self.path)


def read(folder: str) -> dict[str, dict[str, Any]]:
  """The records of a folder by suite, without those that are not complete.

  Args:
    folder: of JSON files; several of a suite, such as one for each vocabulary,
      are read as one.

  Returns:
    Suite to record.

  Raises:
    ValueError: if those of a suite are of different machines or commits.
  """
  records = {}
  for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
    with open(path) as f:
      record = json.load(f)
    if record.get("complete"):
      _join(records.setdefault(record["suite"], record), record, path)
    else:
      print(f"{path}: not complete, left out", file=sys.stderr)
  return records


def _join(first: dict[str, Any], other: dict[str, Any], path: str) -> None:
  """Adds another record's groups and results to the first of its suite."""
  if other is first:
    return
  if other["machine"] != first["machine"]:
    raise ValueError(
        "benchmarks: records of one suite must be of one machine and commit, "
        f"with suite={first['suite']}, path={path}, "
        f"machine={other['machine']}, of those before={first['machine']}. "
        "Measure both again.")
  for name in ("groups", "results"):
    first[name] += other[name]
