"""Patches that say how many texts of a task are longer than the lengths.

One line for each task whose texts are tokenized, before work starts. Scoring
refuses targets that it would cut.
"""

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow.compat.v1 as tf

from switch_mtf.upstream import (
  task_examples,
  task_files,
  text_files,
  vocabulary_ids,
)

# Examples that are counted: enough to see what is cut, few enough to start.
MOST_TRAINING = 1_000
MOST_OTHERS = 10_000
FEW = 200  # where no text can be cut

_said: set[tuple] = set()  # tasks and lengths whose cut texts were announced
_whole: list[bool] = []  # not empty while targets must not be cut


def apply() -> None:
  """Applies the patches of this file."""
  say_what_is_cut()
  say_what_tsv_dataset_cuts()
  score_whole_targets()


def say_what_is_cut() -> None:
  """Says how many texts of a task are cut when it is first read.

  Upstream cuts in silence: a target that training has cut is an answer that
  evaluation counts as wrong. Can be removed when `seqio.Task.get_dataset`
  says so.
  """
  import seqio
  upstream = seqio.Task.get_dataset
  signature = inspect.signature(upstream)

  @functools.wraps(upstream)
  def get_dataset(self, *args, **kwargs):
    call = signature.bind(self, *args, **kwargs)
    call.apply_defaults()
    examples = upstream(self, *args, **kwargs)
    _announce(self, functools.partial(upstream, self), call.arguments, examples)
    return examples

  seqio.Task.get_dataset = get_dataset


def _announce(
    task: Any, read: Callable[..., Any], call: Mapping[str, Any],
    examples: Any
) -> None:
  """Says once how many texts of a task are cut, or refuses to cut targets.

  Checks the examples that it reads for this; a few where no text can be cut,
  unless the data is prepared, so that reading it would only take time.

  Args:
    task: the task.
    read: its `get_dataset`, without the checks of this file.
    call: arguments of the call.
    examples: what the call returned.
  """
  import tensorflow_datasets as tfds
  lengths, split = call["sequence_length"], call["split"]
  names = [name for name in task.output_features if lengths and
           _is_tokenized(name, lengths, examples.element_spec)]
  key = (task.name, split, bool(_whole), str(lengths))
  if not call["trim_output_features"]:
    names = []
  if key in _said or not names and not task_examples.is_own(task):
    return
  most = (FEW if not names else None if _whole
          else MOST_TRAINING if split == "train" else MOST_OTHERS)
  unknown = vocabulary_ids.Unknown()
  with tf.Graph().as_default():
    first = read(lengths, split, call["use_cached"], shuffle=False, seed=0,
                 num_epochs=1, try_in_mem_cache=False).take(
                     -1 if most is None else most)
    total, cut = count_cut(
        task_examples.sound(tfds.as_numpy(first), task, split, unknown),
        lengths,
        {name: task.output_features[name] for name in names})
  if _whole and cut.get("targets"):
    raise ValueError(
        "score: every target must fit into the length, or another text would be"
        f" scored, with task={task.name}, split={split}, targets too long="
        f"{len(cut['targets'])} of {total}, tokens={max(cut['targets'])} at "
        f"most, length={lengths['targets']}. Set "
        f"{text_files.longer(lengths, {'targets': max(cut['targets'])})}.")
  _said.add(key)
  notices = [cut_notice(total, cut, lengths, most), *unknown.lines()]
  for notice in filter(None, notices):
    print(f"task {task.name}, {split}: {notice}.", file=sys.stderr, flush=True)


def _is_tokenized(name: str, lengths: Mapping[str, Any], spec: Any) -> bool:
  """Returns whether the ids of a feature are those of one text beside it."""
  text = spec.get(f"{name}_pretokenized") if isinstance(spec, dict) else None
  ids = spec.get(name) if text is not None else None
  return (ids is not None and isinstance(lengths.get(name), int)
          and text.dtype == tf.string and text.shape.rank == 0
          and ids.shape.rank == 1)


def count_cut(
    examples: Iterable[Mapping[str, Any]], lengths: Mapping[str, int],
    features: Mapping[str, Any]
) -> tuple[int, dict[str, list[int]]]:
  """Returns how many examples there are, and the lengths of what is cut.

  Only texts that fill the length are encoded again.

  Args:
    examples: tokenized and trimmed examples, with their texts.
    lengths: length of each feature.
    features: seqio.Feature of each feature that is looked at.
  """
  total, cut = 0, {}
  for example in examples:
    total += 1
    for name, feature in features.items():
      if len(example[name]) >= lengths[name]:
        text = example[f"{name}_pretokenized"].decode("utf-8", "replace")
        size = len(feature.vocabulary.encode(text)) + bool(feature.add_eos)
        if size > lengths[name]:
          cut.setdefault(name, []).append(size)
  return total, cut


def cut_notice(
    total: int, cut: Mapping[str, list[int]], lengths: Mapping[str, int],
    most: int | None
) -> str:
  """Returns 'N of M targets cut at 6 tokens: set ...', or ''."""
  if not cut:
    return ""
  first = "the first " if most is not None and total >= most else ""
  parts = [f"{len(sizes):,} of {first}{total:,} {name} cut at "
           f"{lengths[name]:,} tokens" for name, sizes in sorted(cut.items())]
  needed = {name: max(sizes) for name, sizes in cut.items()}
  known = {name: size for name, size in lengths.items()
           if isinstance(size, int)}
  return (f"{' and '.join(parts)}: set {text_files.longer(known, needed)} to "
          "keep them whole")


def say_what_tsv_dataset_cuts() -> None:
  """Says how many texts T5's `tsv_dataset_fn` cuts.

  Can be removed with `say_what_is_cut`.
  """
  from mesh_tensorflow.transformer import dataset, utils
  upstream = dataset.packed_parallel_tsv_dataset
  signature = inspect.signature(upstream)

  @functools.wraps(upstream)
  def packed_parallel_tsv_dataset(*args, **kwargs):
    examples = upstream(*args, **kwargs)  # has checked the files
    call = signature.bind_partial(*args, **kwargs).arguments
    lengths, vocabulary = call["sequence_length"], call["vocabulary"]
    if isinstance(lengths, int):
      lengths = {"inputs": lengths, "targets": lengths}
    total, cut = 0, {}
    for path in task_files.files_of_tsv_dataset():
      with open(path, encoding="utf-8", newline="\n") as f:
        for line in itertools.islice(f, MOST_TRAINING - total):
          total += 1
          for name, text, encoder in zip(
              ("inputs", "targets"), line.rstrip("\r\n").split("\t"),
              (utils.inputs_vocabulary, utils.targets_vocabulary), strict=True):
            size = len(encoder(vocabulary).encode(text)) + 1
            if size > lengths[name]:
              cut.setdefault(name, []).append(size)
    notice = cut_notice(total, cut, lengths, MOST_TRAINING)
    if notice:
      print(f"tsv_dataset_fn: {notice}.", file=sys.stderr, flush=True)
    return examples

  dataset.packed_parallel_tsv_dataset = packed_parallel_tsv_dataset


@contextlib.contextmanager
def _keeping_targets_whole() -> Iterator[None]:
  """Makes it an error to cut a target of a task."""
  _whole.append(True)
  try:
    yield
  finally:
    _whole.pop()


def score_whole_targets() -> None:
  """Makes scoring refuse a task whose targets it would cut.

  Upstream scores the beginning of a long target as if it were the target. Can
  be removed when upstream refuses.
  """
  from mesh_tensorflow.transformer import utils
  score, evaluate = utils.score_from_dataset, utils.eval_model

  @functools.wraps(score)
  def score_from_dataset(*args, **kwargs):
    with _keeping_targets_whole():
      return score(*args, **kwargs)

  @functools.wraps(evaluate)
  def eval_model(*args, **kwargs):
    call = inspect.signature(evaluate).bind(*args, **kwargs).arguments
    scores = call.get("eval_with_score")
    with _keeping_targets_whole() if scores else contextlib.nullcontext():
      return evaluate(*args, **kwargs)

  utils.score_from_dataset = score_from_dataset
  utils.eval_model = eval_model
