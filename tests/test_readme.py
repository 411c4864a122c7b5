"""README and CONTRIBUTING: commands work, and what they name exists."""

import importlib.util
import os
import re
import shlex

import pytest
from helpers.runs import run_t5

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, "README.md")) as readme:
  README = readme.read()

# What makes a run of README's short: it is the same command otherwise.
SHORT = ["--gin_param=train_steps = 4", "--gin_param=num_layers = 1",
         "--gin_param=perplexity_eval_steps = 1",
         "--gin_param=save_checkpoints_steps = 4",
         "--gin_param=progress.record_steps = 2"]
SHORT_DEMO = [*SHORT, "--gin_param=fill_blanks.examples_per_task = 1",
              "--gin_param=train_then.phases = ['gin/runs/fill_blanks.gin']"]


def shortened(command):
  """The flags that make a command short."""
  text = " ".join(command)
  if "perplexity_eval.gin" in text:
    return ["--gin_param=perplexity_eval_steps = 1"]
  if "operative_config" in text:
    return []
  return SHORT if "own_text" in text else SHORT_DEMO


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
    done = run_t5([*command[2:], *shortened(command)], cwd=tmp_path)
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


def test_tree_is_that_of_the_repository():
  block = README.split("## The tree")[1].split("```")[1]
  shown, folder = {"": set()}, ""
  for line in block.strip().splitlines():
    if line.startswith(" " * 6):  # a description goes on
      continue
    name = line.split()[0]
    if not line.startswith("  "):
      folder = ""
    assert os.path.exists(os.path.join(ROOT, folder, name)), name
    shown.setdefault(folder, set()).add(name.rstrip("/"))
    folder = folder or name
  rooms = {name.removesuffix("/") for name in os.listdir(
      os.path.join(ROOT, "switch_mtf")) if name not in (
          "__init__.py", "__pycache__")}
  assert shown["switch_mtf/"] == rooms


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_paths_and_links_exist(page):
  with open(os.path.join(ROOT, page)) as f:
    text = f.read()
  links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
  places = re.findall(
      r"`((?:switch_mtf|gin|tasks|tests|docs|results|packaging|benchmarks)/"
      r"[\w./-]*)`", text)
  assert links and places
  for path in {*links, *places}:
    assert os.path.exists(os.path.join(ROOT, path)), path


def test_sections_that_are_linked_exist():
  for path, section in re.findall(r"\]\(([\w./-]+)#([\w-]+)\)", README):
    with open(os.path.join(ROOT, path)) as f:
      titles = re.findall(r"^#+ (.*)$", f.read(), re.MULTILINE)
    assert section in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                       for title in titles}, (path, section)


def test_the_experiment_shown_is_the_file():
  with open(os.path.join(ROOT, "gin/experiments/own_text.gin")) as f:
    shown = f.read().split("#\n# About two minutes on 2 cores.\n")[1]
  assert f"```\n{shown}```" in README
