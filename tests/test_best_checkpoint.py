"""The best step of each task."""

import json

from helpers.runs import SCORES, evaluated

from switch_mtf.training import best_checkpoint


def test_each_task_has_a_best_step_of_its_own(tmp_path):
  # Means of qa: 15, 21, 20.5. cola is as good at 100 as at 200.
  evaluated(tmp_path, SCORES)
  assert best_checkpoint.best(str(tmp_path)) == {
      "cola": {"step": 100, "score": 5.0, "metrics": {"matthews": 5.0}},
      "qa": {"step": 200, "score": 21.0, "metrics": {"em": 12.0, "f1": 30.0}}}


def test_the_best_are_reported_when_they_are_new(tmp_path, capsys):
  best_checkpoint.report(str(tmp_path))
  assert not (tmp_path / "best.json").exists()
  evaluated(tmp_path, SCORES)
  best_checkpoint.report(str(tmp_path))
  assert capsys.readouterr().out == (
      "cola | best at step 100 | matthews 5.00\n"
      "qa | best at step 200 | em 12.00 | f1 30.00\n"
      "2 tasks, each at its best | mean 13.00\n")
  written = json.loads((tmp_path / "best.json").read_text())
  assert written == best_checkpoint.best(str(tmp_path))
  best_checkpoint.report(str(tmp_path))
  assert not capsys.readouterr().out
