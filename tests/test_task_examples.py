"""A task's first examples: that there are some, and their ids."""

import types

import numpy as np
import pytest
import seqio

import tasks  # noqa: F401
from switch_mtf.upstream import task_examples, vocabulary_ids

FEATURES = {name: seqio.Feature(seqio.PassThroughVocabulary(10))
            for name in ("inputs", "targets")}


def task(folder=None):
  source = (
      seqio.TextLineDataSource({"train": f"{folder}/*.txt"}) if folder else
      seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"]))
  return types.SimpleNamespace(
      name="mine", output_features=FEATURES, source=source)


def read(examples, of):
  return list(task_examples.sound(
      [{k: np.array(v) for k, v in e.items()} for e in examples], of, "train",
      vocabulary_ids.Unknown()))


def test_sound_examples_pass():
  examples = [{"inputs": [1, 9], "targets": [-3, 9], "other": [99]},
              {"inputs": np.zeros(0, np.int32)}, {"inputs": [0.5]}]
  assert len(read(examples, task())) == 3


@pytest.mark.parametrize("name, ids, said", [
    ("inputs", [3, 10, 11], "id=11"), ("inputs", [-1], "id=-1"),
    ("targets", [10], "id=10")])
def test_an_id_that_is_not_in_the_vocabulary_is_named(name, ids, said):
  with pytest.raises(ValueError, match=(
      "task mine: ids must be at least 0 and below the size of the vocabulary, "
      f"with split=train, example=2, feature={name}, {said}, vocabulary "
      "size=10. Correct the task's preprocessors")):
    read([{name: [1]}, {name: ids}], task())


@pytest.mark.parametrize("files, said", [
    (None, "source=FunctionDataSource"), (["a.txt"], "file=FOLDER/a.txt"),
    (["a.txt", "b.txt", "c.txt"], "files=FOLDER/a.txt and 2 more")])
def test_a_split_without_examples_is_refused(files, said, tmp_path):
  for name in files or []:
    (tmp_path / name).write_text("")
  said = said.replace("FOLDER", str(tmp_path))
  with pytest.raises(ValueError, match=(
      "task mine: a split must have examples, with split=train, examples=0, "
      f"{said}. ")):
    read([], task(files and tmp_path))


def test_whose_examples_are_read():
  assert task_examples.is_own(task())
  assert task_examples.is_own(seqio.get_mixture_or_task(
      "local_text_span_corruption"))
  assert not task_examples.is_own(seqio.get_mixture_or_task(
      "public_domain_span_corruption"))
