"""What must be decided before TensorFlow is imported.

Nothing here imports TensorFlow. `FAST` is the one switch of everything that
this project does for speed alone.
"""

import os

from switch_mtf.upstream import late_imports

# SWITCH_MTF_FAST=0 disables all speed patches and every kernel of ours, for
# example to bisect a difference: what is computed is then upstream's.
FAST = os.environ.get("SWITCH_MTF_FAST", "1") != "0"


def hide_log() -> None:
  """Hides the log of TensorFlow's C++ side, unless a level was asked for.

  TensorFlow reports as errors that there is no GPU, and that several packages
  register the same plug-in. Can go when it reports neither.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def use_onednn() -> None:
  """Turns on TensorFlow's oneDNN kernels, unless the environment says no.

  TensorFlow 2.15 does so by itself on some processors only, whatever it logs;
  on others attention's matmuls take three times as long. Read while TensorFlow
  is imported, hence called here. Can go when TensorFlow turns them on on every
  x86 processor.
  """
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def put_off_imports() -> None:
  """Puts off imports that only metrics and search spaces need.

  t5, seqio and Keras import them at their own import; together they take a
  sixth of the time until the first step. Hence called here, before
  TensorFlow's import. Can go when those packages import them where they are
  used.
  """
  for name in ("scipy.stats", "sklearn", "rouge_score.rouge_scorer", "pandas",
               "pyglove", "tensorflow_hub"):
    late_imports.import_when_used(name)
  metrics = late_imports.import_when_used("sklearn.metrics")
  # t5 asks whether there are these, to call them some day.
  for name in ("fbeta_score", "matthews_corrcoef") if metrics else ():
    setattr(metrics, name, lambda *args, name=name, **kwargs: getattr(
        metrics.imported(), name)(*args, **kwargs))
