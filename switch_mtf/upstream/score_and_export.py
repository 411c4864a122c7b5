"""Patches for what is scored and exported: ids, whole sequences.

Scores are those of the ids that `infer_and_score` feeds, and an exported model
feeds the same.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.upstream.infer_and_score import has_end
from switch_mtf.upstream.seams import _replaced

_exports: list[bool] = []  # not empty while a model is exported


def apply() -> None:
  """Applies the patches of this file."""
  score_ids()
  export_whole_sequences()
  export_a_score_each()


class _WithoutDecoder:
  """A vocabulary that decodes inside a graph only for an export."""

  def __init__(self, vocabulary: Any):
    self._vocabulary = vocabulary

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_") or name == "decode_tf" and not _exports:
      raise AttributeError(name)
    return getattr(self._vocabulary, name)


def score_ids() -> None:
  """Makes scoring return ids on CPU and GPU, as on TPU.

  Off TPU, `tpu_estimator_model_fn` turns ids into text inside the graph, which
  `save_scores` cannot take. Text does not say, either, which ids were scored:
  unknown ones are lost, and so is whether the end of sequence was among them.
  A language model's given start, whose ids are negative, is not scored and does
  not count as length. Can be removed when `tpu_estimator_model_fn` decodes in
  "infer" mode only, and `save_scores` counts positive ids.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.tpu_estimator_model_fn
  add_features = utils._maybe_add_pretokenized_features

  @functools.wraps(upstream)
  def tpu_estimator_model_fn(*args, **kwargs):
    given = inspect.signature(upstream).bind(*args, **kwargs).arguments
    vocabulary = given.get("vocabulary")
    if given.get("score_in_predict_mode") and vocabulary is not None:
      given["vocabulary"] = (
          tuple(map(_WithoutDecoder, vocabulary))
          if isinstance(vocabulary, tuple) else _WithoutDecoder(vocabulary))
    return upstream(**given)

  @functools.wraps(add_features)
  def add_pretokenized_features(examples, vocabulary):
    examples = add_features(examples, vocabulary)
    for example in examples:
      ids = np.asarray(example.get("targets", []))
      if ids.ndim == 1 and "scores" in example and (ids < 0).any():
        example["targets"] = ids[ids > 0]
    return examples

  utils.tpu_estimator_model_fn = tpu_estimator_model_fn
  utils._maybe_add_pretokenized_features = add_pretokenized_features


def export_whole_sequences() -> None:
  """Makes an exported model feed the ids that evaluation feeds.

  Upstream cuts the end of sequence off a long text, puts one after the start
  that a language model is to continue, scores a target that it has cut, and
  checks the number of texts in an operation that nothing waits for.
  Can be removed when `export_model` encodes as evaluation does.
  """
  from mesh_tensorflow.transformer import dataset, utils
  upstream = utils.export_model

  @functools.wraps(upstream)
  def export_model(*args, **kwargs):
    call = inspect.signature(upstream).bind(*args, **kwargs)
    call.apply_defaults()
    scores = call.arguments["eval_with_score"]
    ended = {name for name in ("inputs", "targets")
             if has_end(name, call.arguments["model_type"])}
    encode, pad = dataset.encode_all_features, dataset.pack_or_pad

    def encode_all_features(examples, vocabulary):
      return encode(examples, vocabulary).map(lambda example: {
          name: ids if name in ended else ids[:-1]
          for name, ids in example.items()})

    def pack_or_pad(dataset, length, feature_keys, **options):
      if scores:
        dataset = dataset.map(functools.partial(_refuse_in_graph, length))
      return pad(dataset, length, feature_keys=feature_keys,
                 ensure_eos=ended & set(feature_keys), **options)

    _exports.append(True)
    try:
      with (_replaced(dataset, encode_all_features=encode_all_features,
                      pack_or_pad=pack_or_pad), _waiting_for_checks()):
        return upstream(*args, **kwargs)
    finally:
      _exports.pop()

  utils.export_model = export_model


@contextlib.contextmanager
def _waiting_for_checks() -> Iterator[None]:
  """Makes a batch wait for the check that it does not hold too many texts.

  TensorFlow logs an error of 12 lines, twice, for a check without a use.
  """
  checks, take = [], tf.data.experimental.get_single_element

  def assert_less_equal(texts, most):
    checks.append(tf.Assert(tf.less_equal(texts, most), [
        "export: a call must have as many texts as the batch, or fewer, with "
        f"batch_size={most}, texts=", texts, ". Send fewer, or export the "
        "model with a larger utils.run.batch_size."]))
    return checks[-1]

  def get_single_element(dataset):
    with tf.control_dependencies(checks):
      return take(dataset)

  with (_replaced(tf.debugging, assert_less_equal=assert_less_equal),
        _replaced(tf.data.experimental,
                  get_single_element=get_single_element)):
    yield


def _refuse_in_graph(
    lengths: dict[str, int], example: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
  """Makes the graph refuse a target that it cannot score whole."""
  size = tf.size(example["targets"])
  message = ("score: every target must fit into the length, with "
             f"length={lengths['targets']}. Export the model with a longer "
             "utils.run.sequence_length.")
  with tf.control_dependencies([tf.Assert(
      tf.less_equal(size, lengths["targets"]), [message, size])]):
    return example | {"targets": tf.identity(example["targets"])}


def export_a_score_each() -> None:
  """Makes a model that is exported for scoring return a row for each target.

  Upstream fills a batch with padding, which it takes off what was decoded, but
  not off scores. Can be removed when `tpu_estimator_model_fn` does.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.tpu_estimator_model_fn

  @functools.wraps(upstream)
  def tpu_estimator_model_fn(*args, **kwargs):
    model_fn = upstream(*args, **kwargs)

    def unpadded(features, labels, mode, params=None, config=None):
      rows = features.get("predict_batch_size")
      spec = model_fn(features, labels, mode, params=params, config=config)
      if rows is None:
        return spec
      # The outputs to export are made of the predictions anew.
      return spec._replace(export_outputs=None, predictions={
          name: value[:rows] for name, value in spec.predictions.items()})

    return unpadded

  utils.tpu_estimator_model_fn = tpu_estimator_model_fn
