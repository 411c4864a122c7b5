"""Checks of a task's examples: that there are some, and which ids they hold.

`cut_texts` reads the first examples of a task before work starts, and asks for
these checks.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from switch_mtf.upstream import vocabulary_ids


def is_own(task: Any) -> bool:
  """Returns whether a task reads a user's own files, or a function."""
  import seqio
  return getattr(task.source, "is_own", False) or isinstance(
      task.source, seqio.FileDataSource | seqio.FunctionDataSource)


def sound(
    examples: Iterable[dict], task: Any, split: str,
    unknown: vocabulary_ids.Unknown) -> Iterator[dict]:
  """Yields examples after checks of their ids, and of their number.

  Args:
    examples: examples as NumPy arrays, from the first one on.
    task: the task.
    split: its split.
    unknown: counts of unknown pieces, to which these examples are added.

  Raises:
    ValueError: if there is no example, or an id is not in the vocabulary.
  """
  known = {name: (feature.vocabulary, feature.vocabulary.vocab_size)
           for name, feature in task.output_features.items()}
  number = 0
  for number, example in enumerate(examples, 1):  # noqa: B007
    for name, (vocabulary, size) in known.items():
      ids = example.get(name)
      if ids is None:
        continue
      unknown.count(name, vocabulary, ids)
      wrong = wrong_id(ids, size, name)
      if wrong is not None:
        raise ValueError(
            f"task {task.name}: ids must be at least 0 and below the size of "
            f"the vocabulary, with split={split}, example={number}, "
            f"feature={name}, id={wrong}, vocabulary size={size}. Correct the "
            "task's preprocessors, or give its output_features the vocabulary "
            "that the ids are of.")
    yield example
  if not number:
    raise ValueError(
        f"task {task.name}: a split must have examples, with split={split}, "
        f"examples=0, {_source(task, split)}. Give the split some, or correct "
        "the task's preprocessors, which may have left all of them out.")


def wrong_id(ids: np.ndarray, size: int, name: str) -> int | None:
  """Returns an id that is not in a vocabulary, or None.

  Args:
    ids: ids of a feature; negative ones of "targets" say that a language model
      is given them.
    size: number of ids of the vocabulary; 0 if it is not known.
    name: name of the feature.
  """
  if not size or not ids.size or not np.issubdtype(ids.dtype, np.integer):
    return None
  if ids.max() >= size:
    return int(ids.max())
  return int(ids.min()) if name == "inputs" and ids.min() < 0 else None


def _source(task: Any, split: str) -> str:
  """Returns 'file=PATH', 'files=PATH and 3 more', or the kind of the source."""
  import seqio
  if not isinstance(task.source, seqio.FileDataSource):
    return f"source={type(task.source).__name__}"
  first, *others = sorted(map(str, task.source.list_shards(split))) or ["none"]
  return (f"files={first} and {len(others)} more" if others
          else f"file={first}")
