"""The vocabularies: T5's, mT5's, and small ones for runs on a CPU.

All have pad 0, end of sequence 1, unknown 2, and 100 sentinels at the end, the
first sentinel having the highest id.
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
  """Returns a vocabulary with T5's sentinels; the file is read when needed."""
  return seqio.SentencePieceVocabulary(model_file, extra_ids=EXTRA_IDS)


class VocabularyFile(NamedTuple):
  """What a vocabulary is read from.

  Attributes:
    path: of a sentencepiece model.
    extra_ids: how many sentinels to add to those that the model holds itself.
  """

  path: str
  extra_ids: int = EXTRA_IDS


class BoundVocabulary(seqio.SentencePieceVocabulary):
  """A vocabulary whose file gin names, looked up when it is first used.

  Tasks are registered before gin files are read.
  """

  def __init__(
      self, bound: Callable[..., VocabularyFile],
      published_size: int | None = None):
    """Records where to ask.

    Args:
      bound: gives the file.
      published_size: ids of the published file. A model can be planned with
        that while no file is bound; text needs the file.
    """
    super().__init__("", extra_ids=EXTRA_IDS)
    self._bound = bound
    self._published_size = published_size

  @property
  def vocab_size(self) -> int:
    """Ids, those of sentinels included."""
    if self._published_size and "path" not in gin.get_bindings(self._bound):
      return self._published_size
    return super().vocab_size

  def _model_context(self):
    if self._model is None:
      self._sentencepiece_model_file, self._extra_ids = self._bound()
    return super()._model_context()


@gin.configurable(module="tasks")
def t5_vocabulary(
    path: str = T5_MODEL, extra_ids: int = EXTRA_IDS) -> VocabularyFile:
  """Returns the vocabulary of all tasks that name no other.

  Args:
    path: a sentencepiece model; T5's own 32,000 pieces by default.
    extra_ids: how many sentinels to add to it.

  Raises:
    ValueError: if there is no such file.
  """
  return _existing("t5_vocabulary", "a sentencepiece model",
                   VocabularyFile(path, extra_ids))


@gin.configurable(module="tasks")
def mt5_vocabulary(
    path: str | None = None, extra_ids: int = 0) -> VocabularyFile:
  """Returns the vocabulary of the multilingual tasks.

  Args:
    path: a sentencepiece model; there is none to be had without the network.
    extra_ids: how many sentinels to add to it. mT5's own file holds them.

  Raises:
    ValueError: if there is no such file.
  """
  return _existing(
      "mt5_vocabulary",
      f"mT5's sentencepiece model, {MT5_IDS:,} pieces, published as "
      "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
      VocabularyFile(path, extra_ids))


def _existing(who: str, what: str, file: VocabularyFile) -> VocabularyFile:
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
