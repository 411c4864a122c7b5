"""Committed records are complete, and their figures are what they claim."""

import json
import shutil

from helpers.graphs import ROOT

from benchmarks import claims
from benchmarks.gin_files import error_of, rows


def test_each_row_was_built():
  # By `python -m benchmarks.gin_files`; --resume adds those that are new.
  found = {group["name"]: group["measurements"] for group in json.loads(
      (ROOT / "results/planning/gin_files.json").read_text())["groups"]}
  expected = {row.name: row for row in rows()}
  assert found.keys() == expected.keys()
  for name, row in expected.items():
    assert error_of(found[name]) is None
    trains = row.small and not found[name]["plan"]["compares"]
    assert ("run" in found[name]) == trains
  assert all(f"| `{name}` |" in (
      ROOT / "results/planning/gin_files.md").read_text() for name in expected)


def test_memory_is_that_of_runs():
  # `python -m benchmarks.planner` wrote it, on the machine that it names.
  with open(ROOT / "results/planning/memory.json") as f:
    found = json.load(f)
  assert len(found["sizes"]) == 5
  for name, size in found["sizes"].items():
    assert size["ratio"] == size["planned"]["peak"] / size["measured"]
    assert .85 <= size["ratio"] <= 1.15, name


def test_the_page_and_the_claims_are_of_the_recorded_runs(tmp_path):
  for folder in ("distill", "finetune"):
    shutil.copytree(ROOT / "results" / folder, tmp_path / folder)
  found = claims.write_all(str(tmp_path / "no_runs"), str(tmp_path))
  assert found == json.loads((ROOT / "results/claims.json").read_text())
  for name in ("claims.md", *(
      f"{folder}/{comparison}.md"
      for comparison, (folder, *_) in claims.COMPARISONS.items())):
    assert (tmp_path / name).read_text() == (
        ROOT / "results" / name).read_text()
  assert (ROOT / "results/claims.md").read_text() in (
      ROOT / "docs/small_scale.md").read_text()
