"""A task on your own text file: set `local_text.path` in gin.

The file is UTF-8; blank lines separate its documents. The hash of a document's
text decides its split, so that adding documents to the file moves at most one
of the others to another split.
"""

import functools
import hashlib
import os
from typing import NamedTuple

import gin

from switch_mtf.upstream import text_files
from tasks import passages, vocabularies
from tasks.prepared import Passage, PreparedSource, cache_dir, prepare

NAME = "local_text"
VERSION = "1.0.0"


class LocalText(NamedTuple):
  """The paths of the text and of the vocabulary that a run binds in gin."""

  path: str | None
  vocabulary: str | None


@gin.configurable(module="tasks")
def local_text(
    path: str | None = None,
    vocabulary: str | None = None,
) -> LocalText:
  """Returns the paths of the text file and of its vocabulary.

  Args:
    path: path of a UTF-8 text file.
    vocabulary: path of a sentencepiece model with ids 0 for padding, 1 for end
      of sequence and 2 for unknown; None for that of `t5_vocabulary`.
  """
  return LocalText(path, vocabulary)


def _local_vocabulary() -> vocabularies.VocabularyFile:
  """Returns the bound vocabulary; raises ValueError if the file is missing."""
  path = local_text().vocabulary
  if path is None:
    return vocabularies.t5_vocabulary()
  if not os.path.isfile(path):
    raise ValueError(
        "local_text: the vocabulary must be a sentencepiece model, with "
        f"vocabulary={path!r}, which is not a file. "
        "Set local_text.vocabulary = '<file>'.")
  return vocabularies.VocabularyFile(path)


LocalVocabulary = functools.partial(
    vocabularies.BoundVocabulary, _local_vocabulary)


def local_text_dir() -> str:
  """Prepares the data set of the bound file and returns its data directory.

  Each content of the file has its own directory, so that an edited file is
  prepared again.

  Raises:
    ValueError: if no file is bound, or the file cannot be used.
  """
  path = local_text().path
  reason = text_files.why_unreadable(path) if path else "is not set"
  if reason:
    raise ValueError(
        "local_text: path must be a text file, with "
        f"path={path!r}, which {reason}. Set local_text.path = '<file>'.")
  stat = os.stat(path)
  digest = _digest(path, stat.st_mtime_ns, stat.st_size)
  return prepare(NAME, VERSION, lambda: split_documents(read(path), path),
                 os.path.join(cache_dir(), "tfds", "local", digest))


@functools.lru_cache
def _digest(path: str, *unused_state: int) -> str:
  """Returns a short hash of the content, read once per time and size."""
  with open(path, "rb") as f:
    return hashlib.sha256(f.read()).hexdigest()[:16]


def read(path: str) -> list[str]:
  """Returns the documents of a text file.

  Raises:
    ValueError: if the file is not UTF-8 or holds no text.
  """
  raw = text_files.read_bytes("local_text", "local_text.path", path)
  text = passages.clean(
      text_files.decoded("local_text", "local_text.path", path, raw))
  if not text:
    raise ValueError(
        "local_text: the file must hold text, with "
        f"path={path}, bytes={len(raw)}. Set local_text.path to another file.")
  return text.split("\n\n")


def split_documents(
    documents: list[str], path: str) -> dict[str, list[Passage]]:
  """Cuts documents into passages and assigns each document to a split.

  About 5 % of the documents are held out, by hash. The document with the lowest
  hash is always held out and the one with the highest hash never, so that
  neither split of a small file is empty.

  Args:
    documents: clean text of each document.
    path: path of the file, for the error message.

  Returns:
    The passages of "train" and of "validation".

  Raises:
    ValueError: if there are fewer than two different documents.
  """
  ranked = sorted(set(documents), key=passages.stable_hash)
  if len(ranked) < 2:
    raise ValueError(
        "local_text: the file must hold at least two different documents, so "
        f"that one can be held out, with path={path}, documents={len(ranked)}. "
        "Separate documents by a blank line.")
  held_out = {d for d in ranked[:-1] if passages.split_of(d) == "validation"}
  held_out.add(ranked[0])
  by_split: dict[str, list[Passage]] = {"train": [], "validation": []}
  for number, document in enumerate(documents):
    split = "validation" if document in held_out else "train"
    for i, passage in enumerate(passages.split_passages(document)):
      by_split[split].append(
          Passage(f"{number}/{i}", passage, NAME, f"document_{number}"))
  return by_split


class LocalTextSource(PreparedSource):
  """A data source on the bound file.

  Attributes:
    is_own: True: the text is the user's, so that its first examples are checked
      before a run.
  """

  is_own = True


local_text_source = functools.partial(
    LocalTextSource, f"{NAME}:{VERSION}", local_text_dir)
