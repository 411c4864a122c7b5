"""TFDS data sets without their data: made up by TFDS, or written by hand."""

import contextlib
import socket
from unittest import mock

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from tasks import tfds_data

ARC = {
    "id": "Mercury_1", "question": "Which of these is a planet?",
    "choices": {"text": ["Moon", "Mars", "Sun"], "label": [0, 1, 2]},
    "answerKey": 1,
}
WSC = {
    "idx": 0, "label": 1, "text": "Bob asked Tom if he can lend some money.",
    "span1_index": np.int32(2), "span1_text": "Tom",
    "span2_index": np.int32(4), "span2_text": "he",
}
# What T5's steps and ours ask of an example that TFDS does not make up.
BY_HAND = {
    "ai2_arc/ARC-Easy:1.0.0": ARC,
    "ai2_arc/ARC-Challenge:1.0.0": ARC,
    "super_glue/wsc.fixed:1.0.2": WSC,
}
SPLITS = ("train", "validation", "test")


def dataset_of(example, count=1):
  """A data set of one example in Python, several times."""
  return tf.data.Dataset.from_tensors(_as_arrays(example)).repeat(count)


def _as_arrays(example):
  """Lists become arrays, so that they are no structure."""
  return {k: _as_arrays(v) if isinstance(v, dict) else np.asarray(v)
          for k, v in example.items()}


@contextlib.contextmanager
def mocked_tfds(directory, sizes=None):
  """Every published data set seems to be there, with two examples a split.

  Args:
    directory: an empty one.
    sizes: TFDS name and version to number of examples, for rates; 4 for others.
  """
  def load(self, split, shuffle_files, seed=None, shard_info=None):
    if self.name in BY_HAND:
      return dataset_of(BY_HAND[self.name], count=2)
    return tfds.load(self.name, split="train", data_dir=str(directory))

  loader = seqio.LazyTfdsLoader
  with contextlib.ExitStack() as stack:
    for patch in (
        mock.patch.object(tfds_data, "_is_complete", lambda *_: True),
        mock.patch.object(loader, "load", load),
        mock.patch.object(loader, "files", lambda self, split: ["f0"]),
        mock.patch.object(loader, "size", lambda self, split: (
            sizes or {}).get(self.name, 4)),
        mock.patch.object(loader, "info", mock.Mock(
            splits=dict.fromkeys(SPLITS))),
        tfds.testing.mock_data(num_examples=2, data_dir=str(directory))):
      stack.enter_context(patch)
    yield


@contextlib.contextmanager
def no_network():
  """Whatever asks for another machine is an error."""
  def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked: {args[1:]}")

  gcs = tfds.core.utils.gcs_utils
  with contextlib.ExitStack() as stack:
    for where, what in (
        (socket.socket, "connect"), (socket, "getaddrinfo"),
        (gcs, "exists"), (tfds.core.DatasetBuilder, "download_and_prepare"),
        (tfds.download.DownloadManager, "download")):
      stack.enter_context(mock.patch.object(where, what, refuse))
    yield


def store(name, features, examples_of, directory):
  """Writes a real TFDS data set: split to examples."""
  data_set, version = name.split(":")
  name, _, config = data_set.partition("/")
  tfds.dataset_builders.store_as_tfds_dataset(
      name=name, config=config or None, version=version,
      features=tfds.features.FeaturesDict(features),
      split_datasets={split: list(enumerate(examples))
                      for split, examples in examples_of.items()},
      data_dir=str(directory))
