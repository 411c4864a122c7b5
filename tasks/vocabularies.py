"""The vocabularies: T5's, mT5's, and small ones for runs on a CPU.

All have id 0 for padding, 1 for end of sequence and 2 for unknown, and 100
sentinels at the end; the first sentinel has the highest id.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import gin
import seqio

from tasks.offline import is_offline, is_remote

EXTRA_IDS = 100
MT5_IDS = 250_100

_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
T5_MODEL = os.path.join(_DATA, "spiece.model")
MULTILINGUAL_MODEL = os.path.join(_DATA, "multilingual_4k.model")


def small_model(thousands: int) -> str:
  """Returns the path of the small vocabulary with that many thousand pieces."""
  return os.path.join(_DATA, f"public_domain_{thousands}k.model")


def vocabulary(model_file: str) -> seqio.SentencePieceVocabulary:
  """Returns a vocabulary with T5's sentinels; the file is read on first use."""
  return seqio.SentencePieceVocabulary(model_file, extra_ids=EXTRA_IDS)


class VocabularyFile(NamedTuple):
  """The file of a vocabulary.

  Attributes:
    path: path of a sentencepiece model.
    extra_ids: number of sentinels to add to those that the model itself holds.
  """

  path: str
  extra_ids: int = EXTRA_IDS


class BoundVocabulary(seqio.SentencePieceVocabulary):
  """A vocabulary whose file is bound in gin and looked up on first use.

  An earlier lookup is impossible: tasks are registered before gin files are
  read.
  """

  def __init__(
      self, bound: Callable[..., VocabularyFile],
      published_size: int | None = None):
    """Stores where to look the file up.

    Args:
      bound: function that returns the file.
      published_size: number of ids of the published file. While no file is
        bound, a model can be planned with this size; text needs the file.
    """
    super().__init__("", extra_ids=EXTRA_IDS)
    self._bound = bound
    self._published_size = published_size

  @property
  def vocab_size(self) -> int:
    """The number of ids, those of the sentinels included."""
    if self._published_size and "path" not in gin.get_bindings(self._bound):
      return self._published_size
    return super().vocab_size

  def _model_context(self):
    """Returns the loaded model, after looking its file up on first use."""
    if self._model is None:
      self._sentencepiece_model_file, self._extra_ids = self._bound()
    return super()._model_context()


@gin.configurable(module="tasks")
def t5_vocabulary(
    path: str = T5_MODEL, extra_ids: int = EXTRA_IDS) -> VocabularyFile:
  """Returns the vocabulary of all tasks that name no other.

  Args:
    path: path of a sentencepiece model; T5's own 32,000 pieces by default.
    extra_ids: number of sentinels to add to the model.

  Raises:
    ValueError: if the file does not exist.
  """
  return _existing("t5_vocabulary", "a sentencepiece model",
                   VocabularyFile(path, extra_ids))


@gin.configurable(module="tasks")
def mt5_vocabulary(
    path: str | None = None, extra_ids: int = 0) -> VocabularyFile:
  """Returns the vocabulary of the multilingual tasks.

  Args:
    path: path of a sentencepiece model; no default, because mT5's is available
      from the network only.
    extra_ids: number of sentinels to add to the model; mT5's own file already
      holds them.

  Raises:
    ValueError: if the file does not exist.
  """
  return _existing(
      "mt5_vocabulary",
      f"mT5's sentencepiece model, {MT5_IDS:,} pieces, published as "
      "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
      VocabularyFile(path, extra_ids))


def _existing(who: str, what: str, file: VocabularyFile) -> VocabularyFile:
  """Returns the file; raises ValueError if the file cannot be read."""
  path = file.path or ""
  there = not is_offline() if is_remote(path) else os.path.isfile(path)
  if not there:
    raise ValueError(
        f"{who}: the vocabulary must be a file on this machine, with "
        f"path={file.path!r}, offline.value={is_offline()}. Set {who}.path to "
        f"{what}.")
  return file


T5 = BoundVocabulary(t5_vocabulary)
MT5 = BoundVocabulary(mt5_vocabulary, MT5_IDS)
SMALL_1K = vocabulary(small_model(1))
SMALL_4K = vocabulary(small_model(4))
MULTILINGUAL_4K = vocabulary(MULTILINGUAL_MODEL)
