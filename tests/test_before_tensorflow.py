"""What is decided before TensorFlow is imported."""

import subprocess
import sys

import pytest
from helpers.graphs import ROOT

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
