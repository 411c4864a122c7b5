"""The best step of each task."""

import json

import gin
import pytest
from helpers.runs import SCORES, evaluated

from switch_mtf.training import best_checkpoint


def test_each_task_has_a_best_step_of_its_own(tmp_path):
  # Means of qa: 15, 21, 20.5. cola is as good at 100 as at 200.
  evaluated(tmp_path, SCORES)
  assert best_checkpoint.best(str(tmp_path)) == {
      "cola": {"step": 100, "score": 5.0, "metrics": {"auc": 5.0}},
      "qa": {"step": 200, "score": 21.0, "metrics": {"em": 12.0, "f1": 30.0}}}


def test_the_best_are_reported_when_they_are_new(tmp_path, capsys):
  best_checkpoint.report(str(tmp_path))
  assert not (tmp_path / "best.json").exists()
  evaluated(tmp_path, SCORES)
  best_checkpoint.report(str(tmp_path))
  assert capsys.readouterr().out == (
      "cola | validation | best at step 100 | auc 5.00\n"
      "qa | validation | best at step 200 | em 12.00 | f1 30.00\n"
      "2 tasks, validation, each at its best | mean 13.00\n")
  written = json.loads((tmp_path / "best.json").read_text())
  assert written == {"validation": best_checkpoint.best(str(tmp_path))}
  best_checkpoint.report(str(tmp_path))
  assert not capsys.readouterr().out


def test_splits_are_apart(tmp_path):
  evaluated(tmp_path, {(100, "qa/em"): 10.0, (200, "qa/em"): 5.0})
  evaluated(tmp_path, {(100, "qa/em"): 1.0, (200, "qa/em"): 90.0}, "test")
  best_checkpoint.report(str(tmp_path))
  written = json.loads((tmp_path / "best.json").read_text())
  assert {split: found["qa"]["step"] for split, found in written.items()} == {
      "test": 200, "validation": 100}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_best(bad, tmp_path):
  evaluated(tmp_path, {(100, "qa/em"): bad, (200, "qa/em"): 5.0,
                       (100, "other/em"): bad})
  found = best_checkpoint.best(str(tmp_path))
  assert found == {
      "qa": {"step": 200, "score": 5.0, "metrics": {"em": 5.0}}}


def test_lower_is_better_for_errors(tmp_path):
  evaluated(tmp_path, {(100, "asr/word_error_rate"): 69.0,
                       (200, "asr/word_error_rate"): 0.0})
  assert best_checkpoint.best(str(tmp_path))["asr"]["step"] == 200


@pytest.mark.parametrize("metric, direction", {
    "accuracy": 1, "sequence_accuracy": 1, "em": 1, "bleu": 1, "rougeLsum": 1,
    "f1_multiclass": 1, "pearson_corrcoef": 1, "auc-roc": 1,
    "neg_log_perplexity": 1, "perplexity": -1, "word_error_rate": -1,
    "min_edit": -1, "wer": -1, "loss": -1, "rmse": -1, "nll": -1,
    "neg_log_likelihood": -1, "log_likelihood": 1, "matthews": 1, "mcc": 1,
    "chrf": 1, "credit": None, "power": None,
    "length": None}.items())
def test_directions(metric, direction):
  assert best_checkpoint.direction(metric) == direction


def test_an_unknown_direction_is_asked_for(tmp_path, capsys, clean_gin):
  evaluated(tmp_path, {(100, "t/length"): 3.0, (200, "t/length"): 2.0})
  best_checkpoint.report(str(tmp_path))
  assert not (tmp_path / "best.json").exists()
  assert ("best.json leaves out length: say with metric_directions.higher or "
          ".lower") in capsys.readouterr().err
  gin.parse_config("metric_directions.lower = ['length']")
  assert best_checkpoint.best(str(tmp_path))["t"]["step"] == 200


def test_a_metric_has_one_direction(clean_gin):
  with pytest.raises(ValueError, match="with in both=a"):
    best_checkpoint.metric_directions(higher=["a", "b"], lower=["a"])


def test_a_broken_file_is_replaced(tmp_path):
  (tmp_path / "best.json").write_text('{"qa": NaN')
  evaluated(tmp_path, SCORES)
  best_checkpoint.report(str(tmp_path))
  assert json.loads((tmp_path / "best.json").read_text())
