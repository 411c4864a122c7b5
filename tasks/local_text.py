"""Your own text file as a task: set `local_text.path` in gin.

The file is UTF-8; blank lines separate its documents. Which documents are held
out follows from the hash of their text, so that adding to the file moves none
from one split to the other.
"""

import functools
import hashlib
import os
from typing import NamedTuple

import gin

from tasks import passages, vocabularies
from tasks.prepared import Passage, PreparedSource, cache_dir, prepare

NAME = "local_text"
VERSION = "1.0.0"


class LocalText(NamedTuple):
  """What a run binds in gin: paths of the text and of the vocabulary."""

  path: str | None
  vocabulary: str


@gin.configurable(module="tasks")
def local_text(
    path: str | None = None,
    vocabulary: str = vocabularies.T5_MODEL,
) -> LocalText:
  """Returns the text file and the vocabulary to read it with.

  Args:
    path: a UTF-8 text file.
    vocabulary: a sentencepiece model with pad 0, end of sequence 1, unknown 2.
  """
  return LocalText(path, vocabulary)


def _local_vocabulary() -> vocabularies.VocabularyFile:
  path = local_text().vocabulary
  if not os.path.isfile(path):
    raise ValueError(
        "local_text: the vocabulary must be a sentencepiece model, with "
        f"vocabulary={path!r}, which is no file. "
        "Set local_text.vocabulary = '<file>'.")
  return vocabularies.VocabularyFile(path)


LocalVocabulary = functools.partial(
    vocabularies.BoundVocabulary, _local_vocabulary)


def local_text_dir() -> str:
  """Prepares the data set of the bound file; returns its data directory.

  Each content of the file has its own directory, so that an edited file is
  prepared anew.
  """
  path = local_text().path
  if not path or not os.path.isfile(path):
    raise ValueError(
        "local_text: path must be a text file, with "
        f"path={path!r}, which is none. Set local_text.path = '<file>'.")
  stat = os.stat(path)
  digest = _digest(path, stat.st_mtime_ns, stat.st_size)
  return prepare(NAME, VERSION, lambda: split_documents(read(path), path),
                 os.path.join(cache_dir(), "tfds", "local", digest))


@functools.lru_cache
def _digest(path: str, *unused_state: int) -> str:
  """Returns a short hash of the content, read once per state of the file."""
  with open(path, "rb") as f:
    return hashlib.sha256(f.read()).hexdigest()[:16]


def read(path: str) -> list[str]:
  """Returns the documents of a text file.

  Raises:
    ValueError: if the file is not UTF-8 or holds no text.
  """
  with open(path, "rb") as f:
    raw = f.read()
  try:
    text = passages.clean(raw.decode("utf-8"))
  except UnicodeDecodeError as e:
    raise ValueError(
        "local_text: the file must be UTF-8, with "
        f"path={path}, byte {e.start}=0x{raw[e.start]:02x}. Convert it, for "
        "example with: iconv -f latin1 -t utf-8 old.txt > new.txt, and set "
        "local_text.path = 'new.txt'.") from e
  if not text:
    raise ValueError(
        "local_text: the file must hold text, with "
        f"path={path}, bytes={len(raw)}. Set local_text.path to another file.")
  return text.split("\n\n")


def split_documents(
    documents: list[str], path: str) -> dict[str, list[Passage]]:
  """Cuts documents into passages and holds some documents out.

  About 5 % are held out by hash; of a small file, the one with the lowest hash.

  Raises:
    ValueError: if there are no two different documents to split.
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


local_text_source = functools.partial(
    PreparedSource, f"{NAME}:{VERSION}", local_text_dir)
