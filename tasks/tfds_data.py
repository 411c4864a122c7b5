"""Finds the TFDS data sets that others publish, and prepares missing ones.

TFDS downloads and prepares a data set when the data set is first read, or
never, with `offline.value = True`.
"""

import functools
import os
import sys
from collections.abc import Iterable, Mapping

import gin
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from tasks.offline import is_offline, is_remote
from tasks.prepared import PreparedSource


@gin.configurable("tfds_data", module="tasks")
def data_dir(path: str | None = None) -> str:
  """Returns the directory of the TFDS data sets.

  Args:
    path: the directory; if None, the environment variable TFDS_DATA_DIR, or
      else ~/tensorflow_datasets, as for TFDS itself.
  """
  path = path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return os.path.expanduser(path)


def ready_dir(name: str) -> str:
  """Prepares a data set if it is missing, and returns its data directory.

  T5's flag `--t5_tfds_data_dir` takes precedence over the binding
  `tfds_data.path`, as for T5's own tasks.

  Args:
    name: TFDS name with version, such as "glue/cola:2.0.0".

  Raises:
    ValueError: if the data set is missing, and the run is offline or this TFDS
      cannot prepare the version.
  """
  directory = seqio.LazyTfdsLoader(name).data_dir or data_dir()
  if is_offline() and is_remote(directory):
    raise ValueError(_how_to_bring(name, directory))
  if _is_complete(name, directory):
    return directory
  if is_offline() or _prepared_version(name) != name.split(":")[1]:
    raise ValueError(_how_to_bring(name, directory))
  print(f"{name}: TFDS downloads and prepares it in {directory}",
        file=sys.stderr)
  tfds.builder(name, data_dir=directory).download_and_prepare()
  return directory


def _folder(name: str) -> str:
  """Returns the folder of a data set inside TFDS's data directory."""
  return name.replace(":", "/")


def _is_complete(name: str, directory: str) -> bool:
  """Returns whether a data set is complete: TFDS writes this file last."""
  return tf.io.gfile.exists(
      os.path.join(directory, _folder(name), "dataset_info.json"))


def _prepared_version(name: str) -> str:
  """Returns the one version that TFDS prepares; TFDS also reads older ones."""
  name, _, config = name.split(":")[0].partition("/")
  builder = tfds.builder_cls(name)
  version = config and builder.builder_configs[config].version
  return str(version or builder.VERSION)


def _how_to_bring(name: str, directory: str) -> str:
  """Returns the error message for a missing data set, with its remedy."""
  folder = _folder(name)
  prepared = _prepared_version(name)
  where = (
      f"Where there is a network, run: tfds build {name} --data_dir=DIR."
      if prepared == name.split(":")[1] else
      f"TFDS {tfds.__version__} reads this version and prepares {prepared} "
      "only: find a data directory DIR in which an older TFDS prepared it.")
  return (
      "tfds_data: the data set must be on this machine, with "
      f"offline.value={is_offline()}, data set={name}, looked for in="
      f"{os.path.join(directory, folder)}. {where} Copy DIR/{folder} to where "
      "it was looked for, or set tfds_data.path to the directory that holds "
      f"{folder}.")


class TfdsSource(PreparedSource):
  """A data source of a published TFDS data set, prepared if missing."""

  def __init__(
      self, name: str,
      splits: Iterable[str] | Mapping[str, str] | None = None):
    """Stores what to read.

    Args:
      name: TFDS name with version.
      splits: names of the splits, or a mapping from the task's splits to those
        of the data set; None for all splits of the data set.
    """
    super().__init__(name, functools.partial(ready_dir, name), splits)
    self.name = name

  @property
  def splits(self) -> Iterable[str]:
    """The names of the splits.

    A mixture asks for the splits of all its tasks before it reads any task, so
    a missing data set is found at once.
    """
    ready_dir(self.name)
    return super().splits
