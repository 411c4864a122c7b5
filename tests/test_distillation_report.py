"""The report of a distillation."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import ROOT
from helpers.runs import SCORES, evaluated

from switch_mtf.distillation import report
from switch_mtf.distillation.report import Trained


def test_table_6_by_hand():
  # -1.580 between -1.636 and -1.444, 223M of 3,800M: 29 % and 94.1 %.
  runs = [Trained("d", "neg_log_perplexity", quality, parameters, speed)
          for quality, parameters, speed in (
              (-1.444, 3_800, 1000.0), (-1.580, 223, 2000.0),
              (-1.636, 223, None))]
  found = report.compare(*runs)
  assert found["share_of_gain"] == pytest.approx(0.29, abs=0.005)
  assert found["compression"] == pytest.approx(0.941, abs=0.0005)
  assert found["speedup"] == 2.0
  assert report.text(found).splitlines()[-1] == (
      "the student keeps 29% of the teacher's gain, with 94.1% fewer "
      "parameters, at 2.00 times its speed.")


def test_a_teacher_that_is_no_better_has_no_gain_to_keep():
  runs = [Trained("d", "task", quality, 10, None) for quality in (1., 2., 3.)]
  found = report.compare(*runs)
  assert found["share_of_gain"] is None and found["speedup"] is None
  assert "no better than the baseline" in report.text(found)


def test_runs_must_be_judged_alike():
  with pytest.raises(ValueError, match=(
      "must have been evaluated alike, with teacher=a, student=b, baseline=a")):
    report.compare(
        *(Trained("d", measure, 1.0, 1, None) for measure in "aba"))


def run_of(folder, scores, sizes):
  """A model_dir with a checkpoint and evaluations."""
  folder.mkdir()
  with tf.Graph().as_default(), tf.Session() as session:
    tf.get_variable("w", sizes)
    tf.get_variable("w_slot_v", [100])
    tf.train.create_global_step()
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(folder / "model.ckpt"))
  evaluated(folder, scores)
  return folder


def test_runs_are_read(tmp_path):
  folders = {
      "teacher": run_of(tmp_path / "t", SCORES, [20, 2]),
      "student": run_of(tmp_path / "s", {(5, "qa/em"): 8.0,
                                         (5, "cola/auc"): 6.0}, [10]),
      "baseline": run_of(tmp_path / "b", {(5, "qa/em"): 4.0,
                                          (5, "cola/auc"): 6.0}, [10])}
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.distillation.report",
       f"--output={tmp_path}/found/report.json",
       *(f"--{role}={folder}" for role, folder in folders.items())],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "found/report.json").read_text())
  # Means over the tasks: 13, 7, 5.
  np.testing.assert_allclose(found["share_of_gain"], 0.25)
  assert found["compression"] == 0.75
  assert "keeps 25% of the teacher's gain" in done.stdout


def test_a_run_must_have_been_trained(tmp_path):
  with pytest.raises(ValueError, match=(
      "distillation_report: the run must have been trained, with "
      f"model_dir={tmp_path}, which is empty")):
    report.read(str(tmp_path))
