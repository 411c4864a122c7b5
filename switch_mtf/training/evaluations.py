"""Prints and records every evaluation of a run, with what it was of."""

import os
import re
from typing import Any

import gin
import numpy as np

from switch_mtf.gin_files import Binding, current, read, written
from switch_mtf.training import metrics, outcomes

# Printed of an evaluation of losses; its other values are in metrics.jsonl.
FIGURES = ("neg_log_perplexity", "token_accuracy", "sequence_accuracy")
CONFIG = "operative_config.gin"
# Bindings that say what is evaluated and when, not of which model.
NOT_OF_THE_MODEL = re.compile(
    r"(.*\.)?(run|progress|train_then|mesh_(train|eval)_dataset_fn|"
    r"get_variable_dtype|export_model|decode_from_file|fill_blanks)\.")
# Those that a training does not use, so that its configuration lacks them. How
# many tokens are decoded is said by the run files.
OF_DECODING = re.compile(
    r"(.*\.)?(\w+\.decode\.(?!max_decode_length$)|beam_search\.|drop_nothing\.)")


def record(
    model_dir: str, kind: str, name: str, step: int, values: dict[str, Any],
    split: str | None = None,
) -> None:
  """Prints an evaluation and appends it to `metrics.jsonl`.

  Args:
    model_dir: folder of the run.
    kind: "eval", or "task_metrics" for the metrics of a task.
    name: task, and for "eval" split and number of examples.
    step: step of the checkpoint.
    values: name of a figure to its value, and perhaps "examples".
    split: the split; by default that of `utils.run.dataset_split`.
  """
  split = split or gin.get_bindings("run").get("dataset_split", "train")
  found = {"kind": kind, "name": name, "step": step, "split": split}
  number = re.search(rf"_{split}_(\d+)", name)
  if number:
    found["examples"] = int(number[1])
  elif "examples" in values:
    found["examples"] = values["examples"]
  values = {k: v for k, v in values.items() if k != "examples"}
  different = differing_bindings(model_dir)
  if different:
    found["bindings"] = different
  values = {k: np.asarray(v)[()] for k, v in values.items()}
  metrics.append(model_dir, {**found, **values})
  figures = values if kind == "task_metrics" else {
      k: values[k] for k in FIGURES if k in values}
  what = name if number else f"{name} | {split}"
  print(" | ".join([
      what, f"step {step:,}", *(f"{k} {v:.4f}" for k, v in figures.items()),
      *(f"{k} = {v}" for k, v in different.items())]), flush=True)
  outcomes.count()


def differing_bindings(model_dir: str) -> dict[str, str]:
  """Returns the model's bindings that differ from those of the training.

  Args:
    model_dir: folder of the run; its operative_config.gin is of the training.

  Returns:
    Name of a binding to its value now, as gin writes it.
  """
  path = os.path.join(model_dir, CONFIG)
  if "://" in path or not os.path.isfile(path):
    return {}
  before = _values(read([path], [], []))
  now = _values(current())
  different = {}
  for (scope, name), value in before.items():
    # In a scope, gin takes the binding of the longest part of it.
    scopes = scope.split("/") if scope else []
    found = next((now[key] for length in range(len(scopes), -1, -1) if (
        key := ("/".join(scopes[:length]), name)) in now), value)
    if found != value:
      different["/".join([*scopes, name])] = found
  for binding in current():
    key = binding.scope, binding.short_name
    at = OF_DECODING.match(binding.name)
    if at and key not in before:
      name = binding.name[at.start(2):]  # without its module
      different["/".join(filter(None, [binding.scope, name]))] = now[key]
  return different


def _values(bindings: list[Binding]) -> dict[tuple[str, str], str]:
  """Returns values of bindings of the model by scope and name, as written."""
  known = {b.name: b.value for b in bindings if b.is_macro}
  return {(b.scope, b.short_name): written(b.value, known)
          for b in bindings
          if not b.is_macro and not NOT_OF_THE_MODEL.match(b.name)}
