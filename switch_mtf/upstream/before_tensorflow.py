"""Settings that must be made before TensorFlow is imported.

`upstream/__init__.py` imports this module first. `FAST` is the one switch for
everything that this project does for speed alone.
"""

import os

from switch_mtf.upstream import late_imports

# SWITCH_MTF_FAST=0 disables all speed patches and all of our kernels, so that
# upstream's code computes everything, for example to bisect a difference.
FAST = os.environ.get("SWITCH_MTF_FAST", "1") != "0"


def hide_log() -> None:
  """Hides the log of TensorFlow's C++ code, unless a log level is set.

  TensorFlow reports as errors that there is no GPU and that several packages
  register the same plug-in. Can be removed when TensorFlow reports neither.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def use_onednn() -> None:
  """Turns on TensorFlow's oneDNN kernels, unless the environment says no.

  TensorFlow 2.15 turns them on by default on some processors only, whatever its
  log says; on the others, the matmuls of attention take three times as long.
  TensorFlow reads TF_ENABLE_ONEDNN_OPTS during its import, hence the call here.
  Can be removed when TensorFlow turns the kernels on on every x86 processor.
  """
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def put_off_imports() -> None:
  """Defers the imports of modules that only metrics and search spaces need.

  t5, seqio and Keras import these modules when they are imported themselves,
  which takes a sixth of the time until the first step. Must be called before
  TensorFlow is imported. Can be removed when those packages import the modules
  where they use them.
  """
  for name in ("scipy.stats", "sklearn", "rouge_score.rouge_scorer", "pandas",
               "pyglove", "tensorflow_hub"):
    late_imports.import_when_used(name)
  metrics = late_imports.import_when_used("sklearn.metrics")
  # t5 checks at import that these functions exist, and calls them later.
  for name in ("fbeta_score", "matthews_corrcoef") if metrics else ():
    setattr(metrics, name, lambda *args, name=name, **kwargs: getattr(
        metrics.imported(), name)(*args, **kwargs))
