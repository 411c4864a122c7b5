"""docs/your_own_data.md: each file runs, and scores are what the page says."""

import re
import shlex
import subprocess
import sys

import pytest
from helpers.runs import ROOT, run_t5, succeed

from switch_mtf.training import metrics

PAGE = (ROOT / "docs" / "your_own_data.md").read_text()
SHORT = ("train_steps = 4", "warmup_steps = 1", "save_checkpoints_steps = 4",
         "num_layers = 1", "perplexity_eval_steps = 2")


def command(of, folder):
  """The command of the page that has these words; it writes to a folder."""
  found, = (text for text in re.findall(
      r"^python run_t5\.py (.*?[^\\])$", PAGE, re.DOTALL | re.MULTILINE)
            if of in text)
  return [re.sub("(?<!gin/)runs/", f"{folder}/", part)
          for part in shlex.split(found.replace("\\\n", " "))]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """The folder of the page's comparison, in short."""
  folder = tmp_path_factory.mktemp("runs")
  done = run_t5([*command("compare.gin", folder),
                 *(f"--gin_param={param}" for param in SHORT),
                 # Decoding is tested elsewhere.
                 "--gin_param=train_then.phases = "
                 "['gin/runs/perplexity_eval.gin']"])
  assert done.returncode == 0, done.stdout + done.stderr
  return folder / "pairs_compared"


def test_two_models_are_compared_on_pairs(compared):
  assert "dense" in (compared / "report" / "report.md").read_text()
  for name in ("dense", "switch"):
    found = metrics.read(str(compared / f"{name}_seed0"), "train")
    assert found[-1]["step"] == 4


def test_scores_are_sums_over_tokens(compared, tmp_path):
  # The sums over all lines are what an evaluation of the split reports.
  lines = (ROOT / "docs/own_data/pairs_validation.tsv").read_text().splitlines()
  for number, name in enumerate(("inputs", "targets")):
    (tmp_path / f"{name}.txt").write_text(
        "".join(line.split("\t")[number] + "\n" for line in lines))
  run = compared / "switch_seed0"
  flags = [flag.replace("= '", f"= '{tmp_path}/")
           for flag in command("score.gin", tmp_path)
           if not flag.startswith(("--model_dir", "--gin_file=/"))]
  succeed(run, f"--gin_file={run}/operative_config.gin", *flags)
  scores, lengths, targets = (
      (tmp_path / f"scored.{name}").read_text().splitlines()
      for name in ("scores", "lengths", "targets"))
  assert len(scores) == len(lengths) == len(lines)
  assert targets == [line.split("\t")[1] for line in lines]
  assert all(float(score) < 0 for score in scores)
  evaluated = metrics.read(str(run), "eval")
  mean = sum(map(float, scores)) / sum(map(int, lengths))
  assert any(record.get("neg_log_perplexity") == pytest.approx(mean, rel=0.02)
             for record in evaluated), evaluated


def test_a_vocabulary_is_trained_that_a_run_takes(tmp_path):
  subprocess.run(
      [sys.executable, "docs/own_data/train_vocabulary.py",
       "docs/own_data/pairs.tsv", f"{tmp_path}/my", "64"],
      cwd=ROOT, check=True)
  done = succeed(
      tmp_path / "run", *command("pairs.gin", tmp_path)[:2],
      f"--gin_param=t5_vocabulary.path = '{tmp_path}/my.model'",
      "--gin_param=train_then.phases = []",
      *(f"--gin_param={param}" for param in SHORT[:4]))
  assert "unknown" not in done.stderr
