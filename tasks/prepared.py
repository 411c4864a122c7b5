"""TFDS data sets that are written on first use, atomically.

seqio reads TFDS data sets from disk. The ones here are made of text that is
already on this machine, so they are prepared when a task first needs them. A
data set is written into a temporary directory and renamed when it is whole: a
killed run leaves only a temporary directory, which the next run removes, and of
two runs that prepare at once one wins and the other uses its result.
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

# Enough files for seqio to shuffle them and to split them among hosts.
NUM_SHARDS = 16
SPLITS = ("train", "validation")


class Passage(NamedTuple):
  """One example: about 2 kB of one document.

  Attributes:
    key: unique in the data set; TFDS orders examples by its hash, so that
      sources are mixed, in an order that never changes.
    text: the passage.
    source: where the document comes from, such as "shakespeare".
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
  """Returns the directory for what is prepared or fetched.

  Args:
    path: the directory; if None, the environment variable SWITCH_MTF_CACHE, or
      else ~/.cache/switch_mtf.
  """
  path = path or os.environ.get("SWITCH_MTF_CACHE") or "~/.cache/switch_mtf"
  return os.path.abspath(os.path.expanduser(path))


class PreparedSource(seqio.TfdsDataSource):
  """A TFDS data source whose data set is prepared when it is first read.

  Registering a task must cost nothing, so the splits are known beforehand, and
  every other access goes through `tfds_dataset`.
  """

  def __init__(
      self, name: str, data_dir: Callable[[], str],
      splits: Iterable[str] | Mapping[str, str] | None = SPLITS):
    """Records what to read.

    Args:
      name: TFDS name with version.
      data_dir: prepares the data set if need be and returns its directory.
      splits: those of the task, or a mapping from them to the data set's.
    """
    super().__init__(tfds_name=name, splits=splits)
    self._data_dir = data_dir

  @property
  def tfds_dataset(self) -> seqio.LazyTfdsLoader:
    """The loader, pointed at a data set that is on disk."""
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
  """Writes a TFDS data set unless it is there.

  Args:
    name: TFDS name.
    version: TFDS version.
    examples: reads the data; called only if the data set must be written.
      Returns the examples of each split: passages, or other tuples with a
      field `key`, whose other fields are the features.
    data_dir: directory of data sets.
    features: TFDS feature of each field but the key; if None, those of a
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
  """Says whether TFDS wrote all of a data set: it writes this file last."""
  return os.path.exists(os.path.join(path, "dataset_info.json"))


def _write(
    name: str, version: str, examples: Mapping[str, Sequence[NamedTuple]],
    data_dir: str, features: Mapping[str, Any]) -> None:
  tfds.disable_progress_bar()
  # TFDS refuses more files than examples.
  num_shards = min(NUM_SHARDS, *map(len, examples.values()))
  # TFDS announces a download of unknown size; there is none.
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
  fields = example._asdict()
  return fields.pop("key"), fields


def _move(fresh: str, final: str) -> None:
  """Puts a whole data set in place, unless another process was faster."""
  os.makedirs(os.path.dirname(final), exist_ok=True)
  if os.path.exists(final) and not _is_complete(final):
    # Not ours: ours appear whole. Something outside left it half-written.
    shutil.rmtree(final, ignore_errors=True)
  try:
    os.rename(fresh, final)
  except OSError:
    if not _is_complete(final):
      raise
