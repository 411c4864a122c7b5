"""Shows what a span-corruption model writes into the blanks of real text."""

import json
import os
import re
from typing import Any

import gin
import mesh_tensorflow.transformer.utils as mtf_utils
import numpy as np
import seqio
import tensorflow.compat.v1 as tf
import tensorflow_datasets as tfds

BLANKS_FILE = "blanks.json"
_SENTINEL = re.compile(r"<extra_id_(\d+)>")


@gin.configurable
def fill_blanks(
    estimator: Any,
    vocabulary: Any,
    batch_size: int,
    sequence_length: dict[str, int],
    checkpoint_path: str,
    *,
    mixture_or_task_name: str = gin.REQUIRED,
    tokens: int = 48,
    examples_per_task: int = 2,
    **unused_kwargs,
) -> None:
  """Fills blanks and writes `blanks.json`; an `infer_model.decode_fn`.

  Args:
    estimator: estimator of the run.
    vocabulary: vocabulary of the run.
    batch_size: number of sequences decoded at once.
    sequence_length: length of each feature in the run.
    checkpoint_path: checkpoint with the weights to use.
    mixture_or_task_name: span-corruption tasks; their validation splits give
      the text.
    tokens: length of a text, blanks included; cut to the length of the run's
      inputs.
    examples_per_task: number of texts from each task.
    **unused_kwargs: other arguments of a decode_fn.
  """
  tokens = min(tokens, sequence_length["inputs"])
  task_or_mixture = seqio.get_mixture_or_task(mixture_or_task_name)
  examples = [
      (task, example) for task in seqio.get_subtasks(task_or_mixture)
      for example in _examples(task, tokens, examples_per_task)]
  ids = np.zeros(
      [-len(examples) % batch_size + len(examples), sequence_length["inputs"]],
      np.int32)
  for row, (_, example) in zip(ids, examples, strict=False):
    row[:len(example["inputs"])] = example["inputs"]

  def input_fn(params):
    del params
    return tf.data.Dataset.from_tensor_slices({"inputs": ids}).batch(batch_size)

  outputs = mtf_utils.decode(
      estimator, input_fn, vocabulary, checkpoint_path=checkpoint_path)
  found = []
  for (task, example), output in zip(examples, outputs, strict=False):
    text, truth = (
        task.output_features[name].vocabulary.decode(example[name].tolist())
        for name in ("inputs", "targets"))
    found.append({"task": task.name, "text": text, "truth": merge(text, truth),
                  "model": merge(text, tf.compat.as_text(output))})
    print(f"\n{found[-1]['model']}\n  was: {found[-1]['truth']}")
  path = os.path.join(estimator.model_dir, BLANKS_FILE)
  with tf.io.gfile.GFile(path, "w") as f:
    json.dump(found, f, indent=1)


def merge(text: str, spans: str) -> str:
  """Puts spans into the blanks of a text.

  Args:
    text: text with sentinels, such as 'to <extra_id_0> or not'.
    spans: spans, each after its sentinel, such as '<extra_id_0> be'.

  Returns:
    'to [be] or not'; a blank that no span fills is '[...]'.
  """
  pieces = _SENTINEL.split(spans)
  filled = {n: span.strip()
            for n, span in zip(pieces[1::2], pieces[2::2], strict=True)}
  return _SENTINEL.sub(
      lambda match: f"[{filled.get(match.group(1)) or '...'}]", text)


def _examples(task: seqio.Task, tokens: int, count: int) -> list[dict]:
  """Returns the first examples of a task's validation split, as numpy."""
  with tf.Graph().as_default():
    dataset = task.get_dataset(
        {"inputs": tokens, "targets": tokens}, split="validation",
        shuffle=False, seed=0)
    return list(tfds.as_numpy(dataset.take(count)))
