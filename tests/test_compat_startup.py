"""What lets a run start sooner: patches of switch_mtf/compat.py."""

import subprocess
import sys
import threading

import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT
from google.protobuf import text_format
from tensorflow.python.training import training_util
from tensorflow_estimator.python.estimator import util as estimator_util

LATE = ("scipy.stats", "sklearn", "sklearn.metrics", "pandas", "pyglove",
        "rouge_score.rouge_scorer", "tensorflow_hub")


@pytest.mark.parametrize("fast", ["0", "1"])
def test_metrics_are_those_of_libraries_that_are_imported_late(fast):
  script = f"""
import os, sys
os.environ["SWITCH_MTF_FAST"] = "{fast}"
import switch_mtf.upstream
import t5.data.mixtures
from switch_mtf.upstream.late_imports import LateModule
late = [name for name in {LATE} if isinstance(sys.modules[name], LateModule)]
assert late == ({list(LATE)} if {fast} else []), late

from t5.data import glue_utils
from t5.evaluation import metrics
# By hand: (2 x 1 - 1 x 1) / sqrt(3 x 2 x 3 x 2) = 1 / 6.
matthews, = glue_utils.GLUE_METRICS["cola"]
found = matthews([1, 1, 1, 0, 0], [1, 1, 0, 0, 1])["matthews_corrcoef"]
assert abs(found - 100 / 6) < 1e-9, found
# F1 is 2 / 3 of the first class, 4 / 5 of the second; nothing is of the third.
found, = metrics.mean_multiclass_f1(num_classes=3)(
    [0, 0, 1, 1], [0, 1, 1, 1]).values()
assert abs(found - 100 * (2 / 3 + 4 / 5) / 3) < 1e-9, found
found = metrics.pearson_corrcoef([1, 2, 3], [2, 4, 6])["pearson_corrcoef"]
assert abs(found - 100) < 1e-9, found
# Two of three words: the same in both directions.
assert abs(metrics.rouge(["a b c"], ["a b d"])["rouge1"] - 200 / 3) < 1e-9
import pandas, scipy.stats, sklearn.metrics
assert scipy.stats.pearsonr and sklearn.metrics.accuracy_score
assert isinstance(pandas.Series([1]), pandas.Series)
"""
  subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_garbage_is_collected_after_the_import():
  code = ("import gc, sys; on = sys.argv[1] == 'on'\n"
          "if not on: gc.disable()\n"
          "from switch_mtf import upstream\nassert gc.isenabled() == on")
  for state in ("on", "off"):
    subprocess.run([sys.executable, "-c", code, state], cwd=ROOT, check=True)


# As a Scaffold is by default, and as mesh_tensorflow makes it for prediction.
@pytest.mark.parametrize("local_init_op", [
    lambda: None, tf.train.Scaffold.default_local_init_op])
@pytest.mark.parametrize("data", [tf.data, tf.compat.v2.data])
def test_data_is_read_before_it_is_asked_for(local_init_op, data):
  read = threading.Event()

  def tell(x):
    read.set()
    return x

  def made():
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.range(5, dtype=tf.int64), tf.range(5, dtype=tf.int64) * 10), -1)
    return data.Dataset.range(5).map(
        lambda x: tf.numpy_function(tell, [table.lookup(x)], tf.int64)
    ).prefetch(1)

  with tf.Graph().as_default():
    features, labels, hooks = estimator_util.parse_input_fn_result(made())
    assert labels is None
    creator = tf.train.ChiefSessionCreator(
        tf.train.Scaffold(local_init_op=local_init_op()))
    with tf.train.MonitoredSession(creator, hooks=hooks) as session:
      assert read.wait(timeout=30)
      # The table was filled before it was read.
      assert [session.run(features) for _ in range(5)] == [0, 10, 20, 30, 40]


def test_graph_is_written(tmp_path):
  with tf.Graph().as_default() as graph:
    tf.constant(1.5, name="one_and_a_half")
  training_util.write_graph(graph.as_graph_def(), str(tmp_path), "g.pbtxt")
  for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
      thread.join()
  assert text_format.Parse(
      (tmp_path / "g.pbtxt").read_text(), tf.GraphDef()) == graph.as_graph_def()
