"""Evaluations: each is printed and recorded, or an error says why not."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from helpers.runs import ROOT, run, same_weights, succeed, weights

from switch_mtf.training import metrics

TASK = "public_domain_span_corruption_1k"


@pytest.fixture
def trained(teacher, tmp_path):
  """A copy of a model_dir."""
  return shutil.copytree(teacher, tmp_path / "trained")


def flags(model_dir, mode, *params):
  return [f"--gin_file={model_dir}/operative_config.gin",
          f"--gin_file=gin/runs/{mode}.gin",
          *(f"--gin_param={param}" for param in (
              "eval_checkpoint_step = -1", *params))]


def test_each_evaluation_of_a_step_is_printed_and_recorded(trained):
  one = "perplexity_eval_steps = 1"
  other = "decoder/SwitchFFN.capacity_factor_eval = 0.5"
  for params in ([one], [one, other], [
      one, "utils.run.dataset_split = 'train'"]):
    done = succeed(trained, *flags(trained, "perplexity_eval", *params))
    assert done.stdout.count("| step 20 | neg_log_perplexity -") == 1
    assert (f"| {other}" in done.stdout) == (other in params)
  lines = [json.loads(line) for line in
           (trained / "metrics.jsonl").read_text().splitlines() if line]
  found = [r for r in lines if r["kind"] == "eval"]
  assert [(r["step"], r["split"], r["examples"], r.get("bindings"))
          for r in found] == [
              (20, "validation", 4, None),
              (20, "validation", 4, dict([other.split(" = ")])),
              (20, "train", 4, None)]
  assert len({r["neg_log_perplexity"] for r in found}) == 3
  # The one with the bindings of the training counts.
  assert metrics.read(str(trained), "eval")[-1] == found[0]


def test_task_metrics_are_recorded(trained):
  done = succeed(trained, *flags(trained, "eval", "eval_examples = 4"))
  assert f"{TASK} | validation | step 20 | " in done.stdout
  record, = metrics.read(str(trained), "task_metrics")
  assert (record["step"], record["examples"]) == (20, 4)
  assert json.loads((trained / "best.json").read_text())["validation"][TASK]


def test_an_unknown_split_is_an_error(trained):
  for mode in ("perplexity_eval", "eval"):
    done = run(trained, *flags(
        trained, mode, "utils.run.dataset_split = 'dev'"))
    assert done.returncode == 1
    assert ("something must be evaluated, with mode=" in done.stderr
            and "split=dev, splits there=train, validation" in done.stderr)


def test_a_finished_run_says_so(trained):
  done = run(trained, f"--gin_file={trained}/operative_config.gin",
             "--gin_param=train_then.phases = []")
  assert done.returncode == 1
  assert "train_steps=20, last step=20" in done.stderr


def test_evaluating_during_training_changes_nothing(teacher, tmp_path):
  params = ["train_steps = 9", "progress.train_steps = 20",
            "utils.run.perplexity_eval_steps = 1", "train_then.phases = []",
            "warmup_steps = 2", "dropout_rate = 0.1"]
  common = ["--gin_file=tests/gin/tiny.gin",
            *(f"--gin_param={param}" for param in params)]
  succeed(tmp_path / "plain", *common)
  done = succeed(tmp_path / "evaluated", *common,
                 "--gin_param=train_then.evaluate_every = 4",
                 "--gin_param=train_then.evaluate_with = "
                 "['gin/runs/perplexity_eval.gin']",
                 "--gin_param=perplexity_eval_steps = 1")
  assert same_weights(
      weights(tmp_path / "evaluated"), weights(tmp_path / "plain"))
  assert [r["step"] for r in metrics.read(
      str(tmp_path / "evaluated"), "eval")] == [4, 8, 9]
  assert done.stdout.count("neg_log_perplexity") == 3
  config = (tmp_path / "evaluated/operative_config.gin").read_text()
  assert "run.mode = 'train'" in config


def test_a_follower_evaluates_every_checkpoint_and_ends(trained):
  # The training run beside it: writes checkpoints 21 to 23, of which it deletes
  # the first, and is done at step 23.
  follower = subprocess.Popen(
      [sys.executable, "run_t5.py", f"--model_dir={trained}", *flags(
          trained, "perplexity_eval", "perplexity_eval_steps = 1",
          "eval_checkpoint_step = None", "utils.run.train_steps = 23")],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  def write(step):
    for path in trained.glob("model.ckpt-20.*"):
      name = path.name.replace("-20.", f"-{step}.")
      if not name.endswith(".index"):
        shutil.copy(path, trained / name)
    shutil.copy(trained / "model.ckpt-20.index",
                trained / f"model.ckpt-{step}.index")

  for step in (21, 22, 23):
    time.sleep(0.5)
    write(step)
  out, err = follower.communicate(timeout=200)
  assert follower.returncode == 0, err
  assert out.count("neg_log_perplexity") == 4
