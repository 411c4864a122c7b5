"""Turns examples into text for the paper's tasks that T5 has none of.

Written as T5 writes its own: the task's name first, then each field after its
name and a colon; the target is the answer's text. A label that is withheld, as
in test splits, is "<unk>" as with T5.
"""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

Example = Mapping[str, Any]


def _closed_book(
    name: str, x: Example, answer: tf.Tensor, accepted: tf.Tensor) -> Example:
  return {
      "inputs": tf.strings.join([f"{name} question: ", x["question"]]),
      "targets": answer,
      "answers": accepted,
  }


@seqio.map_over_dataset
def natural_questions(x: Example) -> Example:
  """"nq question: ..." -> the first of the accepted answers.

  This and the next two are as in google-research's t5_closed_book_qa.

  Args:
    x: an example of natural_questions_open.
  """
  return _closed_book("nq", x, x["answer"][0], x["answer"])


@seqio.map_over_dataset
def web_questions(x: Example) -> Example:
  """"wq question: ..." -> the first of the accepted answers."""
  return _closed_book("wq", x, x["answers"][0], x["answers"])


@seqio.map_over_dataset
def trivia_qa(x: Example) -> Example:
  """"trivia_qa question: ..." -> the answer; its aliases are accepted."""
  return _closed_book(
      "trivia_qa", x, x["answer"]["value"], x["answer"]["aliases"])


@seqio.map_over_dataset
def arc(x: Example, name: str) -> Example:
  """"arc_easy question: ... choices: (A) ... (B) ..." -> the right choice.

  Args:
    x: an example of ai2_arc; most have four choices, some three or five.
    name: what the input begins with.
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
  """"winogrande sentence: ... option1: ... option2: ..." -> the right option.

  The sentence holds "_" where the option belongs.

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
  """A `postprocess_fn`: an answer in lower case, for comparison.

  A target is encoded and decoded, so that a character that the vocabulary lacks
  does not make the right answer wrong.

  Args:
    text: of the model, or of a target.
    vocabulary: of the targets.
    is_target: which of the two.
    **unused_kwargs: what else a postprocess_fn gets.
  """
  if is_target:
    text = vocabulary.decode(vocabulary.encode(text))
  return " ".join(text.lower().split())
