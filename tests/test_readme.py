"""README: its commands work, what it names exists, its figures are true."""

import importlib.util
import json
import os
import re
import shlex

import numpy as np
import pytest
from runs import run

from benchmarks import report

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, "README.md")) as readme:
  README = readme.read()

# What makes a run of README's short: it is the same command otherwise.
SHORT = ["--gin_param=train_steps = 4", "--gin_param=num_layers = 1",
         "--gin_param=perplexity_eval_steps = 1",
         "--gin_param=save_checkpoints_steps = 4",
         "--gin_param=progress.record_steps = 2",
         "--gin_param=fill_blanks.examples_per_task = 1",
         "--gin_param=train_then.phases = ['gin/runs/fill_blanks.gin']"]


def commands():
  """Every command of README's bash blocks, comments and line breaks removed."""
  found = []
  for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      if words:
        found.append(words)
  return found


def starts():
  """Those that start run_t5.py with flags, in README's order."""
  return [c for c in commands() if c[:2] == ["python", "run_t5.py"] and c[2:]]


def test_there_are_commands():
  assert ["python", "run_t5.py"] in commands()
  assert ["pytest"] in commands()
  assert ["pip", "install", "-r", "requirements.txt"] in commands()
  assert len(starts()) >= 4


def test_runs_in_order(tmp_path):
  (tmp_path / "in.txt").write_text("The <extra_id_0> of the sea.\n")
  (tmp_path / "targets.txt").write_text("<extra_id_0> state\n")
  (tmp_path / "my.txt").write_text("\n\n".join(
      f"Text {n}: {'the sea and the sky, ' * n}" for n in range(2, 200)))
  for name in ("gin", "tasks", "tests", "run_t5.py", "switch_mtf"):
    os.symlink(os.path.join(ROOT, name), tmp_path / name)
  for command in starts():
    if "gin/experiments/demo_3_seeds.gin" in " ".join(command):
      continue  # tests/test_gin.py parses it; its parts are run above
    short = [] if "operative_config" in " ".join(command) else SHORT
    done = run([*command[2:], *short], cwd=tmp_path)
    assert done.returncode == 0, (command, done.stdout + done.stderr)
  assert len(list(tmp_path.glob("out.txt-*"))) == 1
  assert (tmp_path / "scores.scores").exists()


@pytest.mark.parametrize("module", sorted(
    {m for m in re.findall(r"python -m ([\w.]+)", README)}))
def test_modules_exist(module):
  spec = importlib.util.find_spec(module)
  if spec.submodule_search_locations:  # a package
    spec = importlib.util.find_spec(f"{module}.__main__")
  with open(spec.origin) as f:
    assert 'if __name__ == "__main__"' in f.read()


def test_tree_exists():
  block = README.split("## The tree")[1].split("```")[1]
  folder = ""
  for line in block.strip().splitlines():
    name = line.split()[0]
    folder = "" if not line.startswith("  ") else folder
    assert os.path.exists(os.path.join(ROOT, folder, name)), name
    folder = folder or name


def demo_rows():
  """The demo's figures: rows of README's table, a column a seed."""
  with open(os.path.join(ROOT, "results/demo/result.json")) as f:
    result = json.load(f)
  dense, switch = (np.array(result["models"][name]["neg_log_perplexity"])
                   for name in ("dense", "switch"))
  assert result["seeds"] == [0, 1, 2]
  return result, dense, switch


def test_figures_are_those_of_the_results():
  result, dense, switch = demo_rows()
  for values in (dense, switch, switch - dense):
    shown = [*values, values.mean(), values.std(ddof=1)]
    assert " | ".join(f"{v:.3f}" for v in shown) in README
  for model in result["models"].values():
    assert f"| {model['parameters']:,} |" in README
  assert f"{np.ptp(dense):.3f} from best to worst" in README
  assert f"{np.ptp(switch):.3f} for" in README
  assert f"{result['steps']:,} steps" in README


@pytest.mark.parametrize("folder", ["init", "precision"])
def test_figures_of_stability(folder):
  with open(os.path.join(
      ROOT, f"results/stability/{folder}/result.json")) as f:
    result = json.load(f)
  for model in result["models"].values():
    values = np.array(model["neg_log_perplexity"])
    assert (f"| {values.mean():.3f} | {values.std(ddof=1):.3f} | "
            f"{len(values)} |") in README


def test_the_gain_is_larger_than_chance():
  # As README says: than the spread over the seeds, and any pair that one draws.
  _, dense, switch = demo_rows()
  gain = switch - dense
  assert gain.mean() > max(np.ptp(dense), np.ptp(switch))
  assert switch.min() > dense.max()


def test_speeds_are_those_of_the_records():
  records = report.read(report.RESULTS)
  assert report.replace(README, report.markdown(records)) == README
