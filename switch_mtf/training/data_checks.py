"""Checks of the ids that a model is trained on and evaluated on."""

from collections.abc import Mapping
from typing import Any

import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf.upstream import seams

MESSAGE = ("data: ids must be at least 0 and below the size of the vocabulary, "
           "with feature={}, vocabulary size={}, ids from")
# TensorFlow escapes apostrophes.
REMEDY = (". Correct the preprocessors of the task, or give its "
          "output_features the vocabulary that the ids are of.")


class IdsHook(tf.estimator.SessionRunHook):
  """A hook that runs the checks of a batch in the step that uses the batch."""

  def __init__(self, checks: list[tf.Operation]):
    """Records its argument."""
    self._checks = checks

  def before_run(self, run_context):
    """Runs the checks with the step, which fails if one of them does."""
    return tf.estimator.SessionRunArgs(self._checks)


def hooks(run: seams.ModelRun) -> list[tf.estimator.SessionRunHook]:
  """Returns the hook that checks each batch of a finished graph.

  Mesh-TF takes an id beyond the vocabulary for none at all, or for one of the
  ids with which it pads the vocabulary. The operations are made after the
  model's, so that its random draws stay the same.

  Args:
    run: the run.

  Returns:
    A list of one hook, or an empty one if there is nothing to check.
  """
  checks = _checks(run.features or {}, run.vocabulary)
  return [IdsHook(checks)] if checks else []


def _checks(features: Mapping[str, Any], vocabulary: Any) -> list[tf.Operation]:
  """Returns operations that fail where an id is not in the vocabulary."""
  checks = []
  for name, of in (("inputs", utils.inputs_vocabulary),
                   ("targets", utils.targets_vocabulary)):
    ids = features.get(name)
    size = getattr(of(vocabulary), "vocab_size", 0) if vocabulary else 0
    if not size or ids is None or not ids.dtype.is_integer:
      continue
    least, most = tf.reduce_min(ids), tf.reduce_max(ids)
    legal = tf.less(most, size)
    if name == "inputs":  # a language model is given negative targets
      legal = tf.logical_and(legal, tf.greater_equal(least, 0))
    checks.append(tf.Assert(
        legal, [MESSAGE.format(name, size), least, "to", most,
                REMEDY]))
  return checks
