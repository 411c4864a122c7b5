"""Turns examples into text, for those of the paper's tasks that T5 lacks.

The format follows T5's: the task's name first, then each field after its name
and a colon; the target is the text of the answer. A withheld label, as in test
splits, is "<unk>", as in T5.
"""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

Example = Mapping[str, Any]


def _closed_book(
    name: str, x: Example, answer: tf.Tensor, accepted: tf.Tensor) -> Example:
  """Returns a question as an input, with its target and accepted answers."""
  return {
      "inputs": tf.strings.join([f"{name} question: ", x["question"]]),
      "targets": answer,
      "answers": accepted,
  }


@seqio.map_over_dataset
def natural_questions(x: Example) -> Example:
  """Builds "nq question: ..." -> the first of the accepted answers.

  This format and those of `web_questions` and `trivia_qa` are from
  google-research's t5_closed_book_qa.

  Args:
    x: an example of natural_questions_open.
  """
  return _closed_book("nq", x, x["answer"][0], x["answer"])


@seqio.map_over_dataset
def web_questions(x: Example) -> Example:
  """Builds "wq question: ..." -> the first of the accepted answers."""
  return _closed_book("wq", x, x["answers"][0], x["answers"])


@seqio.map_over_dataset
def trivia_qa(x: Example) -> Example:
  """Builds "trivia_qa question: ..." -> the answer, with accepted aliases."""
  return _closed_book(
      "trivia_qa", x, x["answer"]["value"], x["answer"]["aliases"])


@seqio.map_over_dataset
def arc(x: Example, name: str) -> Example:
  """Builds "arc_easy question: ... choices: (A) ... (B) ..." -> right choice.

  Args:
    x: an example of ai2_arc; most have four choices, some three or five.
    name: name of the task, with which the input begins.
  """
  texts, labels = x["choices"]["text"], x["choices"]["label"]
  letters = tf.gather([f"({letter}) " for letter in "ABCDE"], labels)
  choices = tf.strings.reduce_join(
      tf.strings.join([letters, texts]), separator=" ")
  right = tf.boolean_mask(texts, tf.equal(labels, x["answerKey"]))
  return {
      "inputs": tf.strings.join(
          [f"{name} question:", x["question"], "choices:", choices], " "),
      "targets": tf.concat([right, ["<unk>"]], axis=0)[0],
  }


@seqio.map_over_dataset
def winogrande(x: Example) -> Example:
  """Builds "winogrande sentence: ... option1: ... option2: ..." -> option.

  The target is the right option; the sentence holds "_" in its place.

  Args:
    x: an example of winogrande.
  """
  options = tf.stack(["<unk>", x["option1"], x["option2"]])
  return {
      "inputs": tf.strings.join(
          ["winogrande sentence:", x["sentence"], "option1:", x["option1"],
           "option2:", x["option2"]], " "),
      "targets": options[x["label"] + 1],
  }


def as_generated(
    text: str, vocabulary: seqio.Vocabulary, is_target: bool = False,
    **unused_kwargs
) -> str:
  """Returns an answer in lower case, for comparison; a `postprocess_fn`.

  A target is encoded and decoded, so that a character that the vocabulary lacks
  does not make a right answer count as wrong.

  Args:
    text: text of the model's output or of a target.
    vocabulary: vocabulary of the targets.
    is_target: whether `text` is a target.
    **unused_kwargs: further arguments of a postprocess_fn.
  """
  if is_target:
    text = vocabulary.decode(vocabulary.encode(text))
  return " ".join(text.lower().split())
