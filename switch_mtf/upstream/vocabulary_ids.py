"""Checks of a vocabulary: its ids, and how much of a text it does not know."""

import collections
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

FLAGS = "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
MOST_UNKNOWN = 0.01  # share of unknown pieces above which a line is printed


def apply() -> None:
  """Applies the patches of this file."""
  refuse_other_ids()


def refuse_other_ids() -> None:
  """Refuses a sentencepiece model whose ids mean something else to T5.

  T5 and Mesh-TF take 0 for padding and 1 for the end of sequence, whatever the
  model says. Sentencepiece's own defaults are unknown, start and end: such a
  model trains, and then writes no end. Can be removed when
  `seqio.SentencePieceVocabulary` compares its ids with those of T5.
  """
  import seqio
  from google.protobuf.message import DecodeError
  upstream = seqio.SentencePieceVocabulary._model_context

  @functools.wraps(upstream)
  def _model_context(self):
    if self._model is None:
      try:
        upstream(self)
      except (RuntimeError, DecodeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            "vocabulary: the file must be a sentencepiece model, with file="
            f"{self._sentencepiece_model_file}, error={reason!r}. Set "
            "t5_vocabulary.path, or the task's vocabulary, to one."
        ) from error
      file, tokenizer = self._sentencepiece_model_file, self._model.tokenizer
      if (tokenizer.pad_id(), tokenizer.eos_id()) != (0, 1):
        self._model = None
        raise ValueError(
            "vocabulary: id 0 must be padding and id 1 the end of sequence, "
            f"with file={file}, pad_id={tokenizer.pad_id()}, "
            f"eos_id={tokenizer.eos_id()}, unk_id={tokenizer.unk_id()}, "
            f"bos_id={tokenizer.bos_id()}. Train the sentencepiece model again "
            f"with {FLAGS}.")
    return self._model

  seqio.SentencePieceVocabulary._model_context = _model_context


class Unknown:
  """Counts of the unknown pieces of texts."""

  def __init__(self):
    self._unknown = collections.Counter()
    self._pieces = collections.Counter()
    self._vocabularies = {}

  def count(self, name: str, vocabulary: Any, ids: Iterable[int]) -> None:
    """Counts the ids of one text.

    Args:
      name: name of the texts, such as "inputs".
      vocabulary: vocabulary of the ids; those without a file are left out.
      ids: ids of the text.
    """
    if not hasattr(vocabulary, "sentencepiece_model_file"):
      return
    ids = np.asarray(ids)
    if ids.size and np.issubdtype(ids.dtype, np.integer):
      self._vocabularies[name] = vocabulary
      self._pieces[name] += np.count_nonzero(ids > 0)
      self._unknown[name] += np.count_nonzero(ids == vocabulary.unk_id)

  def lines(self) -> list[str]:
    """Returns a sentence for each name of which too much is unknown."""
    return [
        f"{100 * unknown / self._pieces[name]:.1f} % of the pieces of {name} "
        f"are unknown to {self._vocabularies[name].sentencepiece_model_file}: "
        "use a vocabulary that was trained on such text (docs/tasks.md)"
        for name, unknown in self._unknown.items()
        if unknown > MOST_UNKNOWN * self._pieces[name]]
