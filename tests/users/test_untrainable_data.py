"""Data that cannot be trained on is refused, and named."""

import pytest
from helpers.runs import run

MODULE = '''
import functools

import seqio
import tensorflow as tf
from t5.data import preprocessors
from t5.evaluation import metrics

from tasks import vocabularies

FEATURES = {name: seqio.Feature(vocabularies.SMALL_1K)
            for name in ("inputs", "targets")}
SPLITS = {"train": "FOLDER/train.tsv", "validation": "FOLDER/validation.tsv"}


def add(name, *more):
  seqio.TaskRegistry.add(
      name, source=seqio.TextLineDataSource(SPLITS),
      preprocessors=[
          functools.partial(
              preprocessors.parse_tsv, field_names=["inputs", "targets"]),
          *more, seqio.preprocessors.append_eos],
      output_features=FEATURES, metric_fns=[metrics.accuracy])


def numbers(dataset):
  return dataset.map(lambda example: {
      name: tf.strings.to_number(
          tf.strings.split([example[name]]).values, tf.int32)
      for name in example})


add("own_texts", seqio.preprocessors.tokenize)
add("own_filter", seqio.preprocessors.tokenize,
    lambda dataset: dataset.filter(lambda example: False))
add("own_ids", numbers)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Trains on lines of text with a task of MODULE."""
  monkeypatch.syspath_prepend(tmp_path)  # a forked run has our sys.path
  (tmp_path / "own_data.py").write_text(
      MODULE.replace("FOLDER", str(tmp_path)))

  def train(task, text):
    for split in ("train", "validation"):
      (tmp_path / f"{split}.tsv").write_text(text)
    return run(
        tmp_path / "run", "--gin_file=tests/gin/tiny.gin",
        "--gin_param=train_steps = 2", "--gin_param=warmup_steps = 1",
        "--gin_param=train_then.phases = []", "--module_import=own_data",
        f"--gin_param=MIXTURE_NAME = '{task}'")

  return train


@pytest.mark.parametrize("task, text, said", [
    ("own_texts", "", "task own_texts: a split must have examples, with "
     "split=train, examples=0, file=FOLDER/train.tsv. "),
    ("own_filter", "a\tb\n", "task own_filter: a split must have examples, "
     "with split=train, examples=0, file=FOLDER/train.tsv. "),
    ("own_ids", "5 6\t7\n5\t1100\n", "task own_ids: ids must be at least 0 "
     "and below the size of the vocabulary, with split=train, example=2, "
     "feature=targets, id=1100, vocabulary size=1100. "),
    ("own_ids", "1100 6\t7\n", "task own_ids: ids must be at least 0 and below "
     "the size of the vocabulary, with split=train, example=1, feature=inputs, "
     "id=1100, vocabulary size=1100. ")])
def test_data_is_refused(task, text, said, own, tmp_path):
  done = own(task, text)
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith(
      said.replace("FOLDER", str(tmp_path)))
  # Before the first step.
  assert not list((tmp_path / "run").glob("model.ckpt*"))


def test_one_example_is_enough(own, tmp_path):
  done = own("own_ids", "5 6\t1099\n")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "run" / "model.ckpt-2.index").exists()
