"""TFDS data sets that are written on first use, atomically.

seqio reads TFDS data sets from disk. The data sets here are built from text on
this machine, so a data set is prepared when a task first needs it. It is
written to a temporary directory and renamed when it is complete. A killed run
leaves only a temporary directory, which the next run removes. If two runs
prepare a data set at once, one wins and the other uses the winner's result.
"""

import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import seqio
import tensorflow_datasets as tfds

from tasks.temporary import temporary_directory

# Enough files for seqio to shuffle and to divide among hosts.
NUM_SHARDS = 16
SPLITS = ("train", "validation")


class Passage(NamedTuple):
  """An example: about 2 kB of one document.

  Attributes:
    key: unique key in the data set. TFDS orders examples by the key's hash, so
      that sources are mixed, in an order that never changes.
    text: text of the passage.
    source: source of the document, such as "shakespeare".
    document: name of the document within its source.
  """

  key: str
  text: str
  source: str
  document: str


PASSAGE_FEATURES = {name: tfds.features.Text()
                    for name in ("text", "source", "document")}


@gin.configurable(module="tasks")
def cache_dir(path: str | None = None) -> str:
  """Returns the directory of prepared and fetched data.

  Args:
    path: the directory; if None, the environment variable SWITCH_MTF_CACHE, or
      else ~/.cache/switch_mtf.
  """
  path = path or os.environ.get("SWITCH_MTF_CACHE") or "~/.cache/switch_mtf"
  return os.path.abspath(os.path.expanduser(path))


class PreparedSource(seqio.TfdsDataSource):
  """A TFDS data source that prepares its data set when it is first read.

  Registering a task must cost nothing, so the splits are given in advance, and
  every other access goes through `tfds_dataset`.
  """

  def __init__(
      self, name: str, data_dir: Callable[[], str],
      splits: Iterable[str] | Mapping[str, str] | None = SPLITS):
    """Stores what to read.

    Args:
      name: TFDS name with version.
      data_dir: function that prepares the data set if necessary and returns its
        data directory.
      splits: names of the splits, or a mapping from the task's splits to those
        of the data set.
    """
    super().__init__(tfds_name=name, splits=splits)
    self._data_dir = data_dir

  @property
  def tfds_dataset(self) -> seqio.LazyTfdsLoader:
    """The loader of the data set, which is prepared first if necessary."""
    loader = super().tfds_dataset
    loader.override_data_dir(self._data_dir())
    return loader

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self._tfds_dataset.name})"

  __str__ = __repr__


def prepare(
    name: str,
    version: str,
    examples: Callable[[], Mapping[str, Sequence[NamedTuple]]],
    data_dir: str,
    features: Mapping[str, Any] | None = None,
) -> str:
  """Writes a TFDS data set unless it exists.

  Args:
    name: TFDS name.
    version: TFDS version.
    examples: function that returns the examples of each split: passages, or
      other tuples with a field `key`, whose other fields are the features. It
      is called only if the data set must be written.
    data_dir: directory of the data sets.
    features: TFDS feature of each field except the key; if None, those of a
      passage.

  Returns:
    `data_dir`, for tfds.builder.

  Raises:
    ValueError: if `data_dir` cannot be written.
  """
  final = os.path.join(data_dir, name, version)
  if _is_complete(final):
    return data_dir
  start = time.time()
  with temporary_directory(data_dir, name) as temporary:
    _write(name, version, examples(), temporary, features or PASSAGE_FEATURES)
    _move(os.path.join(temporary, name, version), final)
  print(f"{name}: prepared in {final} ({time.time() - start:.0f} s)",
        file=sys.stderr)
  return data_dir


def _is_complete(path: str) -> bool:
  """Returns whether a data set is complete: TFDS writes this file last."""
  return os.path.exists(os.path.join(path, "dataset_info.json"))


def _write(
    name: str, version: str, examples: Mapping[str, Sequence[NamedTuple]],
    data_dir: str, features: Mapping[str, Any]) -> None:
  """Writes a TFDS data set, without TFDS's own progress messages."""
  tfds.disable_progress_bar()
  # TFDS refuses more files than examples.
  num_shards = min(NUM_SHARDS, *map(len, examples.values()))
  # TFDS announces a download of unknown size, but downloads nothing.
  with contextlib.redirect_stdout(io.StringIO()):
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(map(_key_and_features, of_split))
                        for split, of_split in examples.items()},
        data_dir=data_dir,
        description="See the tasks directory of switch_mtf.",
        download_config=tfds.download.DownloadConfig(num_shards=num_shards))


def _key_and_features(example: NamedTuple) -> tuple[str, dict[str, Any]]:
  """Returns the key of an example, and its other fields as features."""
  fields = example._asdict()
  return fields.pop("key"), fields


def _move(fresh: str, final: str) -> None:
  """Moves a complete data set into place, unless another process was faster."""
  os.makedirs(os.path.dirname(final), exist_ok=True)
  if os.path.exists(final) and not _is_complete(final):
    # Our writes are atomic, so another program left this incomplete data set.
    shutil.rmtree(final, ignore_errors=True)
  try:
    os.rename(fresh, final)
  except OSError:
    if not _is_complete(final):
      raise
