"""TFDS data sets that others publish: where they stand, and who fetches them.

They are downloaded and prepared by TFDS when they are first read or, with
`offline.value = True`, never.
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
  """Makes sure that a data set is there; returns its data directory.

  T5's flag `--t5_tfds_data_dir` goes before the binding `tfds_data.path`, as
  it does for T5's own tasks.

  Args:
    name: TFDS name with version: "glue/cola:2.0.0".

  Raises:
    ValueError: if it is not there, and the run is offline or this TFDS cannot
      prepare it.
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
  """Where TFDS puts a data set, inside its data directory."""
  return name.replace(":", "/")


def _is_complete(name: str, directory: str) -> bool:
  """Says whether TFDS wrote all of a data set: it writes this file last."""
  return tf.io.gfile.exists(
      os.path.join(directory, _folder(name), "dataset_info.json"))


def _prepared_version(name: str) -> str:
  """Returns the one version that this TFDS prepares; it reads older ones."""
  name, _, config = name.split(":")[0].partition("/")
  builder = tfds.builder_cls(name)
  version = config and builder.builder_configs[config].version
  return str(version or builder.VERSION)


def _how_to_bring(name: str, directory: str) -> str:
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
  """A published TFDS data set that is there, or is fetched, or is an error."""

  def __init__(
      self, name: str,
      splits: Iterable[str] | Mapping[str, str] | None = None):
    """Records what to read.

    Args:
      name: TFDS name with version.
      splits: names of the splits, or a mapping from a task's splits to those of
        the data set; None for all that the data set has.
    """
    super().__init__(name, functools.partial(ready_dir, name), splits)
    self.name = name

  @property
  def splits(self) -> Iterable[str]:
    """Names of the splits.

    A mixture asks for the splits of all its tasks before it reads any of them:
    what is missing is found then.
    """
    ready_dir(self.name)
    return super().splits
