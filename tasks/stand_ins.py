"""Labelled stand-ins for the paper's tasks, on data that anyone can obtain.

A stand-in has the text format, the postprocessing and the metrics of the task
that it stands in for, by T5's own functions. The data is different, so the
figures cannot be compared with published ones. docs/stand_ins.md describes each
stand-in. Each exists with T5's vocabulary, and as `..._4k` with a small one.

`python -m tasks.fetch stand_ins` fetches the data, which is prepared when a
task first reads it.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from t5.data import glue_utils, postprocessors, preprocessors
from t5.evaluation import metrics

from tasks import vocabularies
from tasks.prepared import PreparedSource, cache_dir, prepare
from tasks.pretrain import as_written
from tasks.stand_in_data import (
    ACCEPTABILITY,
    CLOSED_BOOK,
    HEADLINE,
    SENTIMENT,
    STAND_INS,
    TITLE,
    VERSION,
    read_examples,
)

VOCABULARIES = {"": vocabularies.T5, "_4k": vocabularies.SMALL_4K}
# The labels of GLUE's CoLA and SST-2.
ACCEPTABILITY_LABELS = ("unacceptable", "acceptable")
SENTIMENT_LABELS = ("negative", "positive")
# In words: a passage is as long as 64 tokens hold, and an opening as long as a
# headline.
OPENING = "stand_in_opening"
PASSAGE_WORDS, PASSAGE_STRIDE, OPENING_WORDS = 60, 40, 5


@gin.configurable("stand_ins", module="tasks")
def stand_ins_directory(directory: str | None = None) -> str:
  """Returns the directory of the fetched data.

  Args:
    directory: the directory; if None, the cache directory.
  """
  return directory or cache_dir()


def fetched_file(name: str) -> str:
  """Returns the path of a stand-in's fetched data.

  Raises:
    ValueError: if the data was not fetched.
  """
  path = os.path.join(stand_ins_directory(), f"{name}.jsonl")
  if not os.path.exists(path):
    raise ValueError(
        f"{name}: the data must be fetched before it is used, with "
        f"path={path}. Run: python -m tasks.fetch stand_ins, or set "
        "stand_ins.directory = '<directory>'.")
  return path


def source(
    name: str, features: Mapping[str, Any] | None = None,
    **kwargs) -> PreparedSource:
  """Returns the data source of a stand-in.

  Args:
    name: name of the stand-in.
    features: TFDS features of the examples; if None, those of passages.
    **kwargs: further arguments of PreparedSource.
  """
  def data_dir() -> str:
    return prepare(
        name, VERSION,
        lambda: read_examples(fetched_file(name), STAND_INS[name].example),
        os.path.join(cache_dir(), "tfds"), features)
  return PreparedSource(f"{name}:{VERSION}", data_dir, **kwargs)


def ask(dataset):
  """Formats questions as T5's closed-book TriviaQA does.

  The format is that of "How Much Knowledge Can You Pack Into the Parameters of
  a Language Model?", arXiv 2002.08910.

  Args:
    dataset: data set of {"question", "answers"}.

  Returns:
    A data set of {"inputs", "targets", "answers"}; the target is the first
    answer, and every answer counts as right.
  """
  return dataset.map(lambda ex: {
      "inputs": "trivia question: " + ex["question"],
      "targets": ex["answers"][0],
      "answers": ex["answers"]})


def openings(dataset):
  """Cuts articles into passages, each summarised by its first words.

  Only copying solves this task; a model must know how to copy before it can
  learn from a few headlines.

  Args:
    dataset: data set of {"document"}.

  Returns:
    A data set of {"document", "summary"}, with several passages per article.
  """
  def of_article(ex):
    """Returns the data set of one article's passages."""
    words = tf.strings.split(ex["document"])
    last = tf.maximum(tf.size(words) - PASSAGE_WORDS, 1)
    return tf.data.Dataset.range(
        0, tf.cast(last, tf.int64), PASSAGE_STRIDE).map(lambda start: {
            name: tf.strings.reduce_join(
                words[start:start + size], separator=" ")
            for name, size in (("document", PASSAGE_WORDS),
                               ("summary", OPENING_WORDS))})

  return dataset.flat_map(of_article)


def summarize(dataset):
  """Formats {"document", "summary"} as T5 formats its summaries."""
  return preprocessors.summarize(
      dataset, article_key="document", summary_key="summary")


def add_task(
    name: str, features: Mapping[str, Any], to_text: Callable,
    metric_fns: Sequence[Callable], postprocess_fn: Callable | None = None,
    data: str | None = None,
) -> None:
  """Registers a stand-in with each vocabulary.

  Args:
    name: name of the data set and, with the vocabulary's suffix, of the task.
    features: TFDS features of the data set.
    to_text: preprocessor that makes "inputs" and "targets".
    metric_fns: see seqio.Task.
    postprocess_fn: see seqio.Task.
    data: name of the data set, if it differs from `name`.
  """
  steps = [to_text, seqio.preprocessors.tokenize,
           seqio.CacheDatasetPlaceholder(),
           seqio.preprocessors.append_eos_after_trim]
  for suffix, vocabulary in VOCABULARIES.items():
    feature = seqio.Feature(vocabulary, add_eos=True)
    seqio.TaskRegistry.add(
        name + suffix,
        source=source(data or name, features),
        preprocessors=[as_written(step) for step in steps],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns))


def add_classification(
    name: str, glue_name: str, labels: Sequence[str],
    metric_fns: Sequence[Callable]) -> None:
  """Registers a stand-in for a task of GLUE on single sentences.

  Args:
    name: name of the stand-in.
    glue_name: name of the task in GLUE, which begins the inputs.
    labels: names of the labels.
    metric_fns: see seqio.Task.
  """
  add_task(
      name,
      {"sentence": tfds.features.Text(),
       "label": tfds.features.ClassLabel(names=labels)},
      functools.partial(preprocessors.glue, benchmark_name=glue_name,
                        label_names=labels, id_key=None),
      metric_fns,
      functools.partial(postprocessors.string_label_to_class_id,
                        label_classes=labels))


add_classification(
    ACCEPTABILITY, "cola", ACCEPTABILITY_LABELS,
    [*glue_utils.get_glue_metric("cola"), metrics.accuracy])
add_classification(
    SENTIMENT, "sst2", SENTIMENT_LABELS, glue_utils.get_glue_metric("sst2"))
add_task(
    CLOSED_BOOK,
    {"question": tfds.features.Text(),
     "answers": tfds.features.Sequence(tfds.features.Text())},
    ask, [metrics.trivia_qa], postprocessors.qa)
_ARTICLE = {"document": tfds.features.Text(), "summary": tfds.features.Text()}
add_task(HEADLINE, _ARTICLE, summarize, [metrics.rouge])
add_task(OPENING, _ARTICLE, lambda dataset: summarize(openings(dataset)),
         [metrics.rouge], data=HEADLINE)
add_task(TITLE, _ARTICLE, summarize, [metrics.rouge])

for _suffix in VOCABULARIES:
  seqio.MixtureRegistry.add(
      f"stand_in_summaries{_suffix}",
      # At a higher rate, a small model memorizes the few headlines.
      [(HEADLINE + _suffix, 0.2), (OPENING + _suffix, 1.0),
       (TITLE + _suffix, 1.0)])
  seqio.MixtureRegistry.add(
      f"stand_in_fine_tuning{_suffix}",
      [f"{name}{_suffix}" for name in (ACCEPTABILITY, SENTIMENT, CLOSED_BOOK)],
      default_rate=seqio.mixing_rate_num_examples)
