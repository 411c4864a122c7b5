"""The file of a suite: measurements, machine and results.

The whole file is written after every group, so that an interrupted suite can
continue (`--resume`) after the groups that the file has.
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
  """Describes what figures depend on: hardware, versions and commit."""
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
  """Returns the processor's model name."""
  try:
    with open("/proc/cpuinfo") as f:
      names = [line.split(":", 1)[1].strip() for line in f
               if line.startswith("model name")]
  except OSError:
    names = []
  return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
  """Returns the commit, plus "-dirty" if files outside results/ differ."""
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
    data: content of the file.
  """

  def __init__(self, path: str, suite: str, options: dict[str, Any],
               resume: bool, same_machine: bool = True):
    """Starts a new record, or continues the one on disk.

    Args:
      path: path of the file.
      suite: name of the suite.
      options: options of the suite.
      resume: whether to continue a record on disk, if it exists.
      same_machine: whether the record on disk must come from this machine and
        commit. If not, each of its groups gets a note of the processor and
        commit that it came from.

    Raises:
      ValueError: if the record on disk is of another suite or other options,
        or of another machine or commit where `same_machine`.
    """
    self.path = path
    self._same_machine = same_machine
    self.data = {"suite": suite, "complete": False, "machine": machine(),
                 "options": options, "groups": [], "results": []}
    if resume and os.path.exists(path):
      self._resume()

  def _resume(self) -> None:
    """Takes over the groups of the record on disk."""
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
            "--resume to start over.")
    self.data["groups"] = old["groups"]

  def find(self, run: int, group: str) -> dict[str, Any] | None:
    """Returns a group's measurements in a run, by label; None if missing."""
    for entry in self.data["groups"]:
      if (entry["run"], entry["name"]) == (run, group):
        return entry["measurements"]
    return None

  def add(self, run: int, group: str, load_average: float,
          measurements: dict[str, dict[str, Any]]) -> None:
    """Adds a group and saves the file.

    Args:
      run: number of the suite's repetition, from 0.
      group: name of the group.
      load_average: load average before the group, over the last minute.
      measurements: measurements of the group, by label.
    """
    self.data["groups"].append({
        "run": run, "name": group, "load_average": load_average,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "measurements": measurements})
    self.save()

  def finish(self, results: Sequence[dict[str, Any]]) -> None:
    """Adds the results of the claims, marks the record complete and saves."""
    self.data |= {"complete": True, "results": list(results)}
    self.save()

  def save(self) -> None:
    """Replaces the file atomically, so that it is never half written."""
    os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
    temporary = f"{self.path}.tmp"
    with open(temporary, "w") as f:
      json.dump(self.data, f, indent=1)
      f.write("\n")
    os.replace(temporary, self.path)


def read(folder: str) -> dict[str, dict[str, Any]]:
  """Reads the complete records of a folder.

  Args:
    folder: folder of JSON files. Several files of one suite, such as one per
      vocabulary, are joined.

  Returns:
    Suite -> record.

  Raises:
    ValueError: if records of one suite come from different machines or commits.
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
        "benchmarks: records of one suite must come from one machine and "
        f"commit, with suite={first['suite']}, path={path}, "
        f"machine={other['machine']}, earlier machine={first['machine']}. "
        "Measure both again.")
  for name in ("groups", "results"):
    first[name] += other[name]
