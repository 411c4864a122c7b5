"""Writes the measurements of a run to `metrics.jsonl` and TensorBoard.

`metrics.jsonl` in the model_dir holds one JSON object per line (some lines are
empty), in the order of measurement:

  {"kind": "train", "step": 300, "loss": 4.41, "tokens_per_second": 5120.0,
   "encoder/block_000/layer_001/expert_load": [0.07, ...], ...}
  {"kind": "eval", "name": "<task>_<split>_<examples>", "step": 300,
   "split": "<split>", "examples": 640, "neg_log_perplexity": -4.33, ...}
  {"kind": "task_metrics", "name": "<task>", "step": 300, "split": "<split>",
   "examples": 87, "accuracy": 71.3, ...}
  {"kind": "eval_speed", "step": 300, "tokens_per_second": 15230.0}

A resumed run appends to the same file. Steps that an interrupted run recorded
after its last checkpoint appear twice, and the later line counts. An evaluation
whose bindings differ from those that the run was trained with has them as
"bindings"; it does not count where there is one without.
"""

import io
import json
import os
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

METRICS_FILE = "metrics.jsonl"
LOAD = "expert_load"
MAX_COLUMNS = 512  # in a heat map


def append(model_dir: str, record: dict[str, Any]) -> None:
  """Appends one record to `metrics.jsonl`; arrays become lists."""
  plain = {k: _plain(v) for k, v in record.items()}
  # The newline comes first: it ends a line that a killed run cut short.
  with tf.io.gfile.GFile(os.path.join(model_dir, METRICS_FILE), "a") as f:
    f.write("\n" + json.dumps(plain))


def read(model_dir: str, kind: str) -> list[dict[str, Any]]:
  """Reads the record of each step, name and split that counts, of one kind.

  Args:
    model_dir: folder of the run.
    kind: "train", "eval", "task_metrics" or "eval_speed".

  Returns:
    The records, sorted by step; an empty list if there is no file. A line that
    a killed run cut short is left out.
  """
  path = os.path.join(model_dir, METRICS_FILE)
  if not tf.io.gfile.exists(path):
    return []
  latest = {}
  with tf.io.gfile.GFile(path) as f:
    for line in f:
      try:
        record = json.loads(line)
      except ValueError:
        continue
      if record.get("kind") != kind:
        continue
      key = record["step"], record.get("name", ""), record.get("split", "")
      before = latest.get(key)
      if before is None or "bindings" in before or "bindings" not in record:
        latest[key] = record
  return [latest[key] for key in sorted(latest)]


def scalars(record: dict[str, Any]) -> dict[str, float]:
  """Returns the numbers of a record, which TensorBoard draws as curves.

  Among the vectors over experts, only the load is included, by its maximum and
  minimum. `metrics.jsonl` holds all vectors, and `heat_maps` draws the load.
  """
  found = {}
  for name, value in record.items():
    if isinstance(value, str):
      continue
    value = np.asarray(value)
    if value.ndim == 0:
      found[name] = float(value)
    elif name.endswith(LOAD):
      found[f"{name}/max"] = float(value.max())
      found[f"{name}/min"] = float(value.min())
  return found


def heat_maps(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Computes, for each layer, the load of each expert over the run.

  Args:
    records: training records of a run, sorted by step.

  Returns:
    Name of the layer's load to float [experts, columns]: the expert's share of
    the tokens, divided by a fair share. A column is one record, or the mean of
    several if there are many. Records with another number of experts are left
    out.
  """
  found = {}
  for name, value in records[-1].items() if records else ():
    if not name.endswith("/" + LOAD):
      continue
    load = len(value) * np.array(
        [r[name] for r in records if len(r.get(name, ())) == len(value)])
    parts = np.array_split(load, min(MAX_COLUMNS, len(load)))
    found[name] = np.stack([part.mean(axis=0) for part in parts], axis=1)
  return found


def write_heat_maps(
    writer: tf.summary.FileWriter, records: list[dict[str, Any]]
) -> None:
  """Writes `heat_maps` to TensorBoard: blue below a fair share, red above."""
  import matplotlib.image  # takes 0.2 s; imported here, after the first step
  values = []
  for name, load in heat_maps(records).items():
    # Small pictures are enlarged, so that single experts and columns show.
    pixels = np.kron(load, np.ones([max(1, 128 // len(load)),
                                    max(1, 512 // load.shape[1])]))
    png = io.BytesIO()
    matplotlib.image.imsave(
        png, pixels, cmap="RdBu_r", vmin=0, vmax=2, origin="lower",
        format="png")
    image = tf.Summary.Image(
        height=pixels.shape[0], width=pixels.shape[1], colorspace=4,
        encoded_image_string=png.getvalue())
    values.append(tf.Summary.Value(tag=f"{name}_by_step", image=image))
  if values:
    writer.add_summary(tf.Summary(value=values), records[-1]["step"])


def write_scalars(
    writer: tf.summary.FileWriter, record: dict[str, Any], step: int
) -> None:
  """Writes the `scalars` of a record to TensorBoard."""
  summary = tf.Summary(value=[
      tf.Summary.Value(tag=tag, simple_value=value)
      for tag, value in scalars(record).items()])
  writer.add_summary(summary, step)


def read_events(directory: str) -> dict[int, dict[str, Any]]:
  """Reads the event files of a folder: step -> tag -> number or array."""
  found: dict[int, dict[str, Any]] = {}
  pattern = os.path.join(directory, "events.out.*")
  for path in sorted(tf.io.gfile.glob(pattern)):
    for event in tf.train.summary_iterator(path):
      for value in event.summary.value:
        if value.tag == "checkpoint_path":
          continue
        number = (value.simple_value if value.HasField("simple_value")
                  else tf.make_ndarray(value.tensor))
        found.setdefault(event.step, {})[value.tag] = number
  return found


def _plain(value: Any) -> Any:
  """Converts a value for JSON; nine digits tell any two float32s apart."""
  if isinstance(value, np.ndarray):
    return [_plain(v) for v in value.tolist()]
  if isinstance(value, (float, np.floating)):
    return float(f"{float(value):.9g}")
  if isinstance(value, np.integer):
    return int(value)
  return value
