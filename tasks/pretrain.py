"""Pre-training tasks: T5's span corruption on text that anyone can obtain.

Every task but the `half_corrupted` ones builds its examples exactly as T5's own
C4 task does: 15 % of the tokens are masked, in spans of 3 on average, and the
model writes the masked tokens. Only the text and the vocabulary differ.

Span corruption joins passages of different sources into one example. To measure
which expert takes which source, each source has a task `<task>_<source>`, whose
examples hold only that source; the mixture `<task>_by_source` joins them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from t5.data import preprocessors

from tasks import local_text, mixed, text, vocabularies
from tasks.metrics import span_scores


def keep_source(dataset: tf.data.Dataset, source: str) -> tf.data.Dataset:
  """Keeps the passages of one source."""
  return dataset.filter(lambda ex: tf.equal(ex["source"], source))


def add_targets_to_compare(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Adds the targets that evaluation compares with the model's output.

  T5's task has no text for this comparison, because tokens are joined and cut
  before they are masked. The targets added here are ids, which `decode_target`
  turns into text in evaluation. Decoding them here took a quarter of the time
  that an example of 40 tokens takes, in training too, where no one reads them.
  """
  return dataset.map(
      lambda ex: ex | {"targets_pretokenized": ex["targets"]},
      num_parallel_calls=tf.data.AUTOTUNE)


def decode_target(
    output: Any, vocabulary: seqio.Vocabulary, is_target: bool = False,
    **unused_kwargs
) -> Any:
  """Decodes the targets for the metrics; a `postprocess_fn`.

  Args:
    output: output of the model, as text or as a score, or the ids of a target.
    vocabulary: vocabulary of the targets.
    is_target: whether `output` is a target.
    **unused_kwargs: further arguments of a postprocess_fn.

  Returns:
    The text of a target, or the unchanged output of the model.
  """
  return vocabulary.decode(output.tolist()) if is_target else output


def as_written(step: Callable) -> Callable:
  """Returns a preprocessor that AutoGraph does not translate.

  AutoGraph would spend seconds on the functions that the step calls and change
  nothing, because none of them branches in Python on the value of a tensor.
  """
  if isinstance(step, seqio.CacheDatasetPlaceholder):
    return step
  if isinstance(step, functools.partial):  # seqio reads its signature
    return functools.partial(as_written(step.func), *step.args, **step.keywords)
  return tf.autograph.experimental.do_not_convert(step)


def add_span_corruption(
    name: str,
    source: seqio.DataSource,
    vocabulary: seqio.Vocabulary,
    only_source: str | None = None,
    **objective: float,
) -> None:
  """Registers a task with the steps of T5's `c4_v220_span_corruption`.

  The task has a metric because evaluation skips tasks without metrics;
  pre-training is judged by the loss.

  Args:
    name: name of the task.
    source: data source, whose examples have a feature "text".
    vocabulary: vocabulary of inputs and targets.
    only_source: the only source whose passages are kept; if None, all are kept.
    **objective: arguments of T5's `span_corruption` that replace T5's defaults.
  """
  first = ([functools.partial(keep_source, source=only_source)]
           if only_source else [])
  steps = [
      *first,
      functools.partial(
          preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
      seqio.preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      functools.partial(preprocessors.span_corruption, **objective),
      seqio.preprocessors.append_eos_after_trim,
      add_targets_to_compare,
  ]
  seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[as_written(step) for step in steps],
      output_features={
          "inputs": seqio.Feature(vocabulary, add_eos=True, required=False),
          "targets": seqio.Feature(vocabulary, add_eos=True),
      },
      postprocess_fn=functools.partial(decode_target, vocabulary=vocabulary),
      metric_fns=[span_scores])


def add_corpus(
    corpus: str,
    source: Callable[[], seqio.DataSource],
    vocabulary_of: Mapping[str, seqio.Vocabulary],
    sources: Sequence[str],
) -> None:
  """Registers a corpus: for each vocabulary, a task, and a task per source.

  Args:
    corpus: prefix of the task names.
    source: function that returns the data source.
    vocabulary_of: vocabularies, by the suffix of the task name.
    sources: values of the feature "source".
  """
  for suffix, vocabulary in vocabulary_of.items():
    name = f"{corpus}_span_corruption{suffix}"
    add_span_corruption(name, source(), vocabulary)
    for only in sources:
      add_span_corruption(f"{name}_{only}", source(), vocabulary, only)
    seqio.MixtureRegistry.add(
        f"{name}_by_source", [f"{name}_{only}" for only in sources],
        default_rate=1)


add_corpus(
    "public_domain", text.public_domain_text,
    {"": vocabularies.T5, "_1k": vocabularies.SMALL_1K,
     "_4k": vocabularies.SMALL_4K},
    text.SOURCES)
add_corpus(
    "mixed_english", mixed.mixed_english,
    {"": vocabularies.T5, "_4k": vocabularies.SMALL_4K},
    mixed.SOURCES)
# For comparisons of small models: masking half of the text, in one span, gives
# more to learn from a batch.
for _suffix, _vocabulary in (
    ("1k", vocabularies.SMALL_1K), ("4k", vocabularies.SMALL_4K)):
  add_span_corruption(
      f"mixed_english_half_corrupted_{_suffix}", mixed.mixed_english(),
      _vocabulary, noise_density=0.5, mean_noise_span_length=24)
add_span_corruption(
    "local_text_span_corruption", local_text.local_text_source(),
    local_text.LocalVocabulary())
