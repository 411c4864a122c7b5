import json

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.training import metrics


def test_read_sorts_and_the_later_line_of_a_step_counts(tmp_path):
  for step, loss in ((2, 1.0), (1, 5.0), (2, 0.5)):
    metrics.append(str(tmp_path), {"kind": "train", "step": step, "loss": loss})
  metrics.append(str(tmp_path), {"kind": "eval", "name": "a", "step": 1})
  found = metrics.read(str(tmp_path), "train")
  assert [(r["step"], r["loss"]) for r in found] == [(1, 5.0), (2, 0.5)]


def test_read_leaves_out_a_line_cut_short_and_no_other(tmp_path):
  metrics.append(str(tmp_path), {"kind": "train", "step": 1})
  with open(tmp_path / metrics.METRICS_FILE, "a") as f:
    f.write('\n{"kind": "train", "st')
  metrics.append(str(tmp_path), {"kind": "train", "step": 9})
  found = metrics.read(str(tmp_path), "train")
  assert [r["step"] for r in found] == [1, 9]


def test_arrays_become_lists_of_nine_digits(tmp_path):
  metrics.append(
      str(tmp_path), {"load": np.array([1 / 3], np.float32), "n": np.int64(3)})
  line = (tmp_path / metrics.METRICS_FILE).read_text()
  assert json.loads(line) == {"load": [0.333333343], "n": 3}


def test_scalars_of_short_and_long_vectors():
  short = metrics.scalars({"kind": "train", "load": [0.25, 0.75], "loss": 2})
  assert short == {"load/00": 0.25, "load/01": 0.75, "loss": 2.0}
  size = metrics.MAX_EXPERT_SCALARS + 1
  long = metrics.scalars({"load": list(range(size))})
  assert long == {"load/max": size - 1, "load/min": 0.0}


def test_evaluations_are_collected_once(tmp_path):
  writer = tf.summary.FileWriter(str(tmp_path / "eval_task_validation_64"))
  vector = tf.Summary.Value(
      tag="load", tensor=tf.make_tensor_proto(np.array([1.0, 2.0])))
  path = tf.Summary.Value(
      tag="checkpoint_path", tensor=tf.make_tensor_proto(b"model.ckpt-5"))
  number = tf.Summary.Value(tag="neg_log_perplexity", simple_value=-4.0)
  writer.add_summary(tf.Summary(value=[vector, path, number]), 5)
  writer.close()
  expected = {"kind": "eval", "name": "task_validation_64", "step": 5,
              "neg_log_perplexity": -4.0}
  added, = metrics.collect_evaluations(str(tmp_path))
  assert list(added.pop("load")) == [1.0, 2.0]
  assert added == expected
  assert metrics.collect_evaluations(str(tmp_path)) == []
  assert len(metrics.read(str(tmp_path), "eval")) == 1


def test_report_evaluations_prints_the_figures(tmp_path, capsys):
  writer = tf.summary.FileWriter(str(tmp_path / "eval_t"))
  number = tf.Summary.Value(tag="neg_log_perplexity", simple_value=-4.25)
  writer.add_summary(tf.Summary(value=[number]), 1200)
  writer.close()
  metrics.report_evaluations(str(tmp_path))
  assert capsys.readouterr().out == (
      "t | step 1,200 | neg_log_perplexity -4.2500\n")
