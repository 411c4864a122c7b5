"""The figures that README and docs/ show are those of committed records."""

import json

import numpy as np
import pytest
from helpers.graphs import ROOT

from benchmarks import report

README = (ROOT / "README.md").read_text()
SMALL_SCALE = (ROOT / "docs/small_scale.md").read_text()


def demo_rows():
  """The demo's figures: rows of README's table, a column a seed."""
  result = json.loads((ROOT / "results/demo/result.json").read_text())
  dense, switch = (np.array(result["models"][name]["neg_log_perplexity"])
                   for name in ("dense", "switch"))
  assert result["seeds"] == [0, 1, 2]
  return result, dense, switch


def test_figures_of_the_demo():
  result, dense, switch = demo_rows()
  for values in (dense, switch, switch - dense):
    shown = [*values, values.mean(), values.std(ddof=1)]
    assert " | ".join(f"{v:.3f}" for v in shown) in README
  for model in result["models"].values():
    assert f"| {model['parameters']:,} |" in README
  assert f"{np.ptp(dense):.3f} from best to worst" in README
  assert f"{np.ptp(switch):.3f} for the Switch" in README
  assert f"{result['steps']:,} steps" in README


def test_the_gain_is_larger_than_chance():
  # As README says: than the spread over the seeds, and any pair that one draws.
  _, dense, switch = demo_rows()
  gain = switch - dense
  assert gain.mean() > max(np.ptp(dense), np.ptp(switch))
  assert switch.min() > dense.max()


@pytest.mark.parametrize("folder", ["init", "precision"])
def test_figures_of_stability(folder):
  result = json.loads(
      (ROOT / f"results/stability/{folder}/result.json").read_text())
  for model in result["models"].values():
    values = np.array(model["neg_log_perplexity"])
    assert (f"| {values.mean():.3f} | {values.std(ddof=1):.3f} | "
            f"{len(values)} |") in SMALL_SCALE


@pytest.mark.parametrize("path, write", [
    ("README.md", report.headlines), ("docs/speed.md", report.claims_table),
    ("results/benchmarks/README.md", report.markdown)])
def test_speeds_are_those_of_the_records(path, write):
  text = (ROOT / path).read_text()
  records = report.read(report.RESULTS)
  assert report.replace(text, write(records)) == text
  assert set(report.HEADLINES) <= {
      result["name"] for record in records.values()
      for result in record["results"]}


# Of a run's metrics, those that docs/stand_ins.md shows.
SHOWN = ("accuracy", "matthews_corrcoef", "f1", "rouge1", "neg_log_perplexity")


@pytest.mark.parametrize("path", sorted(
    (ROOT / "results/stand_ins").glob("*.json")), ids=lambda path: path.stem)
def test_figures_are_those_of_the_results(path):
  # Each is in the page, and better than without a model.
  found = json.loads(path.read_text())
  page = (ROOT / "docs/stand_ins.md").read_text()
  rows = page.split(f"| `{path.stem}` |")[1].split("\n\n")[0]
  shown = 0
  for tag, steps in found["run"].items():
    metric, (step, value) = tag.split("/")[-1], list(steps.items())[-1]
    known = [task for task in found["baselines"] if task in tag]
    if not known:  # a task that there is no simple answer to
      continue
    task, = known
    answers = found["baselines"][task]
    without = max(answer.get(metric, -np.inf) for answer in answers.values())
    line = f"| {int(step):,} | {value:.2f} | {without:.2f} |"
    if metric in SHOWN and line in rows:
      assert value > without
      shown += 1
  assert shown >= len(found["baselines"])
