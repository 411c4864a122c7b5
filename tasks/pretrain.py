"""Pre-training tasks: T5's span corruption on text that anyone can have.

Every task builds its examples exactly as T5's own C4 task does: 15 % of the
tokens are masked, in spans of 3 on average, and the model writes what stood
there. Only the text and the vocabulary differ.

Span corruption joins passages of different sources into one example. To measure
which expert takes which source there is, for each source, a task whose examples
hold nothing else: `<task>_<source>`; the mixture `<task>_by_source` joins them.
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
  """Adds what evaluation compares with what is decoded.

  T5's task has no text for that, because tokens are joined and cut before they
  are masked. These are ids, which `decode_target` makes text of in evaluation:
  to decode them here took a quarter of the time that an example of 40 tokens
  takes, in training too, where nobody reads them.
  """
  return dataset.map(
      lambda ex: ex | {"targets_pretokenized": ex["targets"]},
      num_parallel_calls=tf.data.AUTOTUNE)


def decode_target(
    output: Any, vocabulary: seqio.Vocabulary, is_target: bool = False,
    **unused_kwargs
) -> Any:
  """A `postprocess_fn`: gives the metrics a target as text.

  Args:
    output: of the model, decoded or scored; or the ids of a target.
    vocabulary: of the targets.
    is_target: which of the two.
    **unused_kwargs: what else a postprocess_fn gets.

  Returns:
    The target as text; what comes from the model as it is.
  """
  return vocabulary.decode(output.tolist()) if is_target else output


def as_written(step: Callable) -> Callable:
  """A preprocessor that AutoGraph leaves alone.

  AutoGraph would translate each function that the step calls, for seconds, and
  finds nothing to do in them: none decides by the value of a tensor in Python.
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

  The metric is there because evaluation skips tasks that have none; what
  pre-training is judged by is the loss.

  Args:
    name: of the task.
    source: gives examples with a feature "text".
    vocabulary: for inputs and targets.
    only_source: if set, keep passages of this source alone.
    **objective: of T5's `span_corruption`, where it is not as T5 has it.
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
  """Registers a corpus' tasks: one a vocabulary, one for each source.

  Args:
    corpus: prefix of the names.
    source: makes the data source.
    vocabulary_of: suffix of the name -> vocabulary.
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
# More to learn from a batch, for comparisons of small models: one blank, of
# half the text.
for _suffix, _vocabulary in (
    ("1k", vocabularies.SMALL_1K), ("4k", vocabularies.SMALL_4K)):
  add_span_corruption(
      f"mixed_english_half_corrupted_{_suffix}", mixed.mixed_english(),
      _vocabulary, noise_density=0.5, mean_noise_span_length=24)
add_span_corruption(
    "local_text_span_corruption", local_text.local_text_source(),
    local_text.LocalVocabulary())
