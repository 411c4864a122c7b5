"""The data set mixed_english: the corpus built by `python -m tasks.fetch`."""

import functools
import os

import gin

from tasks import text
from tasks.prepared import PreparedSource, cache_dir, prepare
from tasks.text import passages_by_split, read_documents

NAME = "mixed_english"
VERSION = "1.0.0"
SOURCES = (*text.SOURCES, "brown", "wikipedia", "bbc_news")


@gin.configurable("mixed_english", module="tasks")
def mixed_english_file(path: str | None = None) -> str:
  """Returns the path of the fetched corpus.

  Args:
    path: path of the file; if None, mixed_english.jsonl in the cache directory.
  """
  return path or os.path.join(cache_dir(), "mixed_english.jsonl")


def mixed_english_dir() -> str:
  """Prepares mixed_english if necessary and returns its data directory."""
  return prepare(NAME, VERSION, _read, os.path.join(cache_dir(), "tfds"))


def _read():
  """Returns the passages by split; raises ValueError if the file is missing."""
  path = mixed_english_file()
  if not os.path.exists(path):
    raise ValueError(
        "mixed_english: the corpus must be fetched before it is used, with "
        f"path={path}. Run: python -m tasks.fetch, or set mixed_english.path = "
        "'<file>'.")
  return passages_by_split(read_documents(path))


mixed_english = functools.partial(
    PreparedSource, f"{NAME}:{VERSION}", mixed_english_dir)
