"""Ids are checked in the step that uses them."""

import types

import pytest
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.training import data_checks
from switch_mtf.upstream import seams

VOCABULARY = types.SimpleNamespace(vocab_size=10)
LARGER = types.SimpleNamespace(vocab_size=20)


def check(features, vocabulary=VOCABULARY):
  """Runs a step of a graph with these features."""
  run = seams.ModelRun(
      mode="train", use_tpu=False, model_dir=None, tokens_per_step=4,
      mesh_shape=None, layout_rules=None, keep_checkpoint_max=None,
      features={name: tf.constant(value) for name, value in features.items()},
      vocabulary=vocabulary)
  hooks, step = data_checks.hooks(run), tf.no_op()
  with tf.train.MonitoredSession(hooks=hooks) as session:
    session.run(step)
  return hooks


@pytest.mark.parametrize("features, vocabulary", [
    ({"inputs": [[0, 9]], "targets": [[9, -9]]}, VOCABULARY),
    ({"inputs": [[9]], "targets": [[19]]}, (VOCABULARY, LARGER)),
    ({"targets": [[0]]}, VOCABULARY), ({"inputs": [[9.5]]}, VOCABULARY),
    ({"inputs": [[99]]}, None)])
def test_ids_of_the_vocabulary_pass(features, vocabulary):
  check(features, vocabulary)


@pytest.mark.parametrize("features, vocabulary, said", [
    ({"inputs": [[0, 10]]}, VOCABULARY,
     "feature=inputs, vocabulary size=10, ids from 0 to 10."),
    ({"inputs": [[-1, 3]]}, VOCABULARY,
     "feature=inputs, vocabulary size=10, ids from -1 to 3."),
    ({"inputs": [[9]], "targets": [[20, 1]]}, (VOCABULARY, LARGER),
     "feature=targets, vocabulary size=20, ids from 1 to 20.")])
def test_other_ids_end_the_step(features, vocabulary, said):
  with pytest.raises(tf.errors.InvalidArgumentError) as failed:
    check(features, vocabulary)
  text = errors.user_message(failed.value)
  assert text.startswith("data: ids must be at least 0 and below the size of "
                         f"the vocabulary, with {said} Correct the ")


def test_without_a_vocabulary_there_is_no_hook():
  assert check({"inputs": [[99]]}, None) == []
