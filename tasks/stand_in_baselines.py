"""Prints the stand-ins' metrics, of simple answers and of a run.

    python -m tasks.stand_in_baselines [--model_dir=DIR] [--json=FILE]

For each stand-in, the task's own metrics rate simple answers on the validation
split: the most frequent label, the title itself, the first words of the
article, the frequencies of tokens. With --model_dir, the metrics that
gin/runs/task_metrics.gin or perplexity_eval.gin wrote there are printed too.
"""

import argparse
import collections
import glob
import json
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import stand_in_multilingual, stand_ins
from tasks.stand_in_data import (
    ACCEPTABILITY,
    CLOSED_BOOK,
    HEADLINE,
    SENTIMENT,
    STAND_INS,
    TITLE,
    Article,
    Question,
    Sentence,
    read_examples,
)

Scores = dict[str, float]


def score(task: str, targets: Sequence, predictions: Sequence) -> Scores:
  """Returns a task's metrics of predictions.

  Args:
    task: name of the task.
    targets: targets, as returned by the task's postprocess_fn.
    predictions: predictions, in the same form.
  """
  return {name: float(value)
          for metric in seqio.TaskRegistry.get(task).metric_fns
          for name, value in metric(targets, predictions).items()}


def most_frequent_label(
    task: str, train: list[Sentence], validation: list[Sentence]) -> Scores:
  """Scores the most frequent label of the training split."""
  counts = collections.Counter(ex.label for ex in train)
  (label, _), = counts.most_common(1)
  return score(task, [ex.label for ex in validation], [label] * len(validation))


def most_frequent_answer(
    task: str, train: list[Question], validation: list[Question]) -> Scores:
  """Scores the most frequent answer of the training split."""
  counts = collections.Counter(ex.answers[0] for ex in train)
  # A tie goes to the answer that is first in the alphabet.
  answer = min(counts, key=lambda a: (-counts[a], a))
  return score(
      task, [ex.answers for ex in validation], [answer] * len(validation))


def copied_question(
    task: str, train: list[Question], validation: list[Question]) -> Scores:
  """Scores the question, which is a title, as the answer."""
  return score(task, [ex.answers for ex in validation],
               [ex.question for ex in validation])


def first_words(
    task: str, train: list[Article], validation: list[Article]) -> Scores:
  """Scores the article's first words, as many as a summary has on average."""
  words = round(np.mean([len(ex.summary.split()) for ex in train]))
  return score(task, [ex.summary for ex in validation],
               [" ".join(ex.document.split()[:words]) for ex in validation])


BASELINES = {
    ACCEPTABILITY: (most_frequent_label,),
    SENTIMENT: (most_frequent_label,),
    CLOSED_BOOK: (most_frequent_answer, copied_question),
    HEADLINE: (first_words,),
    TITLE: (first_words,),
}


def token_frequencies(
    task: str, lengths: dict[str, int], examples: int) -> Scores:
  """Returns the loss of a model that knows only how frequent tokens are.

  Args:
    task: name of a span-corruption task.
    lengths: lengths of inputs and targets.
    examples: maximum number of examples, both to count tokens in and to measure
      the loss on.

  Returns:
    "neg_log_perplexity" in nats per target token; the count of every token is
      raised by 1.
  """
  provider = seqio.get_mixture_or_task(task)
  size = provider.output_features["targets"].vocabulary.vocab_size
  counts, measured = (
      np.bincount(np.concatenate([ex["targets"] for ex in provider.get_dataset(
          lengths, split, shuffle=True, seed=0).take(examples)
          .as_numpy_iterator()]), minlength=size)
      for split in ("train", "validation"))
  log_probs = np.log((counts + 1) / (counts.sum() + size))
  return {"neg_log_perplexity":
              float((measured * log_probs).sum() / measured.sum())}


def measured(model_dir: str) -> Iterator[tuple[str, int, float]]:
  """Yields (metric, step, value) of a run: T5's task metrics and the losses."""
  for path in sorted(glob.glob(
      os.path.join(model_dir, "validation_eval", "events.out.*"))):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        yield value.tag, event.step, value.simple_value
  losses = os.path.join(model_dir, "metrics.jsonl")
  if os.path.exists(losses):
    with open(losses) as f:
      for record in map(json.loads, filter(str.strip, f)):
        if record["kind"] == "eval":
          yield (f"{record['name']}/neg_log_perplexity", record["step"],
                 record["neg_log_perplexity"])


def simple_answers() -> dict[str, dict[str, Scores]]:
  """Returns the metrics of the simple answers, as task -> answer -> metrics."""
  found = {}
  for name, baselines in BASELINES.items():
    examples = read_examples(
        stand_ins.fetched_file(name), STAND_INS[name].example)
    found[name] = {
        baseline.__name__: baseline(
            name, examples["train"], examples["validation"])
        for baseline in baselines}
  found[stand_in_multilingual.JOINT] = {"token_frequencies": token_frequencies(
      stand_in_multilingual.JOINT, {"inputs": 64, "targets": 16}, 5000)}
  return found


def _show(figures: Scores) -> str:
  """Returns the figures on one line, without those that are NaN."""
  return ", ".join(f"{name} {value:.2f}" for name, value in figures.items()
                   if not math.isnan(value))


def main() -> None:
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model_dir", help="folder of a run of the stand-ins")
  parser.add_argument("--json", metavar="FILE", help="file for the figures")
  arguments = parser.parse_args()
  found = {"baselines": simple_answers(), "run": {}}
  for task, answers in found["baselines"].items():
    for answer, figures in answers.items():
      print(f"{task} | {answer}: {_show(figures)}")
  for tag, step, value in (
      measured(arguments.model_dir) if arguments.model_dir else ()):
    print(f"{tag} | step {step:,} | {value:.2f}")
    found["run"].setdefault(tag, {})[step] = value
  if arguments.json:
    if arguments.model_dir:  # only the tasks of the run
      found["baselines"] = {
          task: answers for task, answers in found["baselines"].items()
          if any(task in tag for tag in found["run"])}
    with open(arguments.json, "w") as f:
      json.dump(found, f, indent=1)
      f.write("\n")


if __name__ == "__main__":
  main()
