"""Scores are of ids; an exported graph refuses what it cannot score whole."""

import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf.upstream import score_and_export
from tasks import vocabularies

VOCABULARY = vocabularies.SMALL_1K


def test_a_graph_that_scores_does_not_decode():
  without = score_and_export._WithoutDecoder(VOCABULARY)
  assert hasattr(VOCABULARY, "decode_tf") and not hasattr(without, "decode_tf")
  assert without.encode("the state") == VOCABULARY.encode("the state")
  assert without.vocab_size == VOCABULARY.vocab_size


def test_a_graph_that_is_exported_decodes(monkeypatch):
  monkeypatch.setattr(score_and_export, "_exports", [True])
  assert hasattr(score_and_export._WithoutDecoder(VOCABULARY), "decode_tf")


def saved(tmp_path, *targets):
  """What scoring writes of targets, each a list of ids."""
  results = [{"scores": -1.5, "targets": np.array(t)} for t in targets]
  utils.save_scores(results, VOCABULARY, scores_filename=f"{tmp_path}/out")
  return [(tmp_path / f"out.{name}").read_text().splitlines()
          for name in ("lengths", "targets")]


def test_lengths_are_those_of_the_ids(tmp_path):
  # Unknown pieces are three pieces when their text is encoded again.
  text = VOCABULARY.encode("the state")
  lengths, targets = saved(
      tmp_path, [2, 5, 1, 0, 0], [*text, 0, 0], [1, 0, 0], [5, 5, 5, 5, 1])
  assert lengths == ["3", str(len(text)), "1", "5"]
  assert targets[1] == "the state" and targets[2] == ""


def test_a_start_that_is_not_scored_does_not_count(tmp_path):
  lengths, targets = saved(
      tmp_path, [-7, -8, *VOCABULARY.encode("the state"), 1, 0])
  assert lengths == [str(len(VOCABULARY.encode("the state")) + 1)]
  assert targets == ["the state"]


@pytest.mark.parametrize("model_type, scores, right", [
    ("bitransformer", False, [[5, 6, 1, 0], [5, 6, 7, 1]]),
    ("lm", False, [[5, 6, 0, 0], [5, 6, 7, 8]]),
    ("bitransformer", True, [[5, 6, 1, 0], [5, 6, 7, 1]])])
def test_an_exported_model_feeds_whole_sequences(
    model_type, scores, right, clean_gin):
  class Vocabulary:
    """One whose texts are ids."""

    def encode_tf(self, text):
      return tf.strings.to_number(tf.strings.split([text]).values, tf.int32)

  fed = []
  estimator = types.SimpleNamespace(
      export_saved_model=lambda folder, inputs, **unused: fed.append(inputs()))
  lengths = {"inputs": 4, "targets": 4}
  utils.export_model(estimator, "folder", Vocabulary(), lengths, model_type,
                     eval_with_score=scores, batch_size=2)
  receiver, = fed
  tensors = receiver.receiver_tensors
  with tf.Session() as session:
    def feed(inputs, targets):
      return session.run(receiver.features["inputs"], {
          tensor: inputs if name == "inputs" else targets
          for name, tensor in tensors.items()})

    short = ["5 6", "5 6"]
    np.testing.assert_array_equal(feed(["5 6", "5 6 7 8 9"], short), right)
    with pytest.raises(tf.errors.InvalidArgumentError, match="export: a call "
                       "must have as many texts as the batch, or fewer, with "
                       "batch_size=2, texts="):
      feed(["5"] * 3, ["5"] * 3)
    if scores:
      with pytest.raises(tf.errors.InvalidArgumentError, match="score: every "
                         "target must fit into the length, with length=4"):
        session.run(receiver.features["targets"], {
            tensors["inputs"]: short, tensors["targets"]: ["5", "5 6 7 8"]})


def test_padding_of_a_batch_is_not_exported(monkeypatch):
  def tpu_estimator_model_fn():
    return lambda features, labels, mode, params=None, config=None: (
        tf.estimator.tpu.TPUEstimatorSpec(mode, predictions={
            "scores": tf.constant([-1.0, -2.0, 0.0, 0.0])}))

  monkeypatch.setattr(utils, "tpu_estimator_model_fn", tpu_estimator_model_fn)
  score_and_export.export_a_score_each()
  model_fn = utils.tpu_estimator_model_fn()
  with tf.Session() as session:
    spec = model_fn({"predict_batch_size": tf.constant(2)}, None, "infer")
    assert session.run(spec.predictions["scores"]).tolist() == [-1, -2]
    spec = model_fn({}, None, "infer")
    assert session.run(spec.predictions["scores"]).shape == (4,)
