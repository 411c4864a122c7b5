"""Draws and writes the report of a comparison (`compare.py`).

The report is made from files of the runs (`metrics.jsonl`, `blanks.json`,
`operative_config.gin`, task metrics), so it can be made again at any time.

A run is ranked by its loss on the validation split at the last step. If only
tasks were scored, it is ranked by the mean of their metrics, at the step that
is best for all tasks together; `best_checkpoint.py` finds each task's own best
step.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
import tensorflow.compat.v1 as tf

matplotlib.use("Agg")  # files only, no window
import matplotlib.pyplot as plt  # noqa: E402

from switch_mtf.comparison import blanks  # noqa: E402
from switch_mtf.training import (  # noqa: E402
  best_checkpoint,
  checkpoint_files,
  metrics,
)

LOAD = "expert_load"
# One per model, the baseline first.
COLORS = ("#7f7f7f", "#c44e52", "#4c72b0", "#55a868", "#8172b3", "#ccb974",
          "#64b5cd", "#8c613c", "#da8bc3", "#000000")
LOSS, SCORE = "neg_log_perplexity", "score"
# Measure that ranks a run -> its name in words, its unit.
MEASURES = {LOSS: ("neg. log perplexity", "nats a token"),
            SCORE: ("mean of the task's metrics", "points")}


def write(
    model_dir: str, title: str, models: list[str], seeds: list[int]
) -> str:
  """Writes `<model_dir>/report/`.

  Args:
    model_dir: folder of the comparison.
    title: title of the report.
    models: names of the models, the baseline first.
    seeds: seeds of the runs; pictures of experts show the first.

  Returns:
    The table, the verdict and the path of the report, as text.
  """
  folder = os.path.join(model_dir, "report")
  os.makedirs(folder, exist_ok=True)
  runs = {(m, s): read_run(model_dir, m, s) for m in models for s in seeds}
  result = summarize(runs, models, seeds)
  with open(os.path.join(folder, "result.json"), "w") as f:
    json.dump(result, f, indent=1)
  pictures = [draw_curves(runs, models, seeds, folder)]
  for model in models:
    run = runs[model, seeds[0]]
    pictures += draw_load(run["train"], model, folder)
    pictures += draw_sources(run["eval"], model, folder)
  text = verdict(result)
  _write_markdown(folder, title, text, pictures, runs, models, seeds)
  return f"{text}\n\nReport: {os.path.join(folder, 'report.md')}"


def read_run(model_dir: str, model: str, seed: int) -> dict[str, Any]:
  """Reads the records, parameters, settings and blanks of one run."""
  directory = os.path.join(model_dir, f"{model}_seed{seed}")
  evaluations = metrics.read(directory, "eval")
  filled = os.path.join(directory, blanks.BLANKS_FILE)
  found = []
  if os.path.exists(filled):
    with open(filled) as f:
      found = json.load(f)
  return {
      "directory": directory,
      "train": metrics.read(directory, "train"),
      "eval": evaluations,
      "validation": validation(directory, evaluations),
      "parameters": count_parameters(directory),
      "choices": _choices(directory),
      "blanks": found}


def validation(
    directory: str, evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the figures that rank a run, in the order of their steps.

  Args:
    directory: folder of the run.
    evaluations: evaluations of the run's losses, from `metrics.read`.

  Returns:
    Records with "step" and LOSS. If the losses were not evaluated, records with
      "step" and SCORE: the mean of each task's metrics, averaged over the
      tasks.

  Raises:
    ValueError: if the run was never evaluated.
  """
  # Records of older runs have no split: they are of the validation split.
  evaluations = [
      r for r in evaluations if r.get("split", "validation") == "validation"]
  if evaluations:
    whole = min((r["name"] for r in evaluations), key=_how_partial)
    return [r for r in evaluations if r["name"] == whole]
  tasks = best_checkpoint.scores(directory).values()
  if not tasks:
    raise ValueError(
        "report: a run must have been evaluated, with "
        f"model_dir={directory}, evaluations=0. Set train_then.phases to "
        "['gin/runs/perplexity_eval.gin'] or ['gin/runs/task_metrics.gin'].")
  return [{"step": step, SCORE: float(np.mean(
      [np.mean(list(task[step].values())) for task in tasks]))}
          for step in sorted(set.intersection(*map(set, tasks)))]


def _how_partial(name: str) -> tuple[int, int]:
  """Returns a key that is smallest for most examples of the whole split."""
  # Tasks of its parts have longer names.
  task, _, examples = name.rpartition("_validation_")
  number = re.match(r"\d+", examples)
  return len(task), -int(number[0]) if number else 0


def count_parameters(directory: str) -> int:
  """Returns the number of weights in the last checkpoint, without slots.

  Args:
    directory: folder of the run.

  Raises:
    ValueError: if it has no checkpoint.
  """
  last = checkpoint_files.last(directory)
  if last is None:
    raise ValueError(
        "report: a run must have a checkpoint, with "
        f"model_dir={directory}, {checkpoint_files.described(directory)}. "
        "Correct the folder, or run the model again.")
  shapes = tf.train.list_variables(last)
  return sum(int(np.prod(shape)) for name, shape in shapes
             if "_slot_" not in name and name != "global_step")


def _choices(directory: str) -> str:
  """Returns the macros of a run's gin files: sizes, schedule, task."""
  with open(os.path.join(directory, "operative_config.gin")) as f:
    found = re.search(r"# Macros:\n# =+\n(.*?)\n\n", f.read(), re.DOTALL)
  return found.group(1) if found else ""


def summarize(
    runs: dict, models: list[str], seeds: list[int]
) -> dict[str, Any]:
  """Computes the figures of a comparison.

  Args:
    runs: (model, seed) -> result of `read_run`.
    models: names of the models, the baseline first.
    seeds: seeds of the runs.

  Returns:
    For each model, its parameters and, for each seed, the figure that ranks the
      run, under LOSS or SCORE, and the median training speed.
      For each model but the first, the gain over the first with the same seed,
      the mean and standard deviation of the gains, and the spread: the range of
      figures over the seeds, of this model or of the baseline, whichever is
      larger.
  """
  measure = measure_of(runs.values())
  figures = {m: {
      "parameters": runs[m, seeds[0]]["parameters"],
      measure: [quality(runs[m, s]["validation"], measure) for s in seeds],
      "tokens_per_second": [_speed(runs[m, s]["train"]) for s in seeds],
  } for m in models}
  base = np.array(figures[models[0]][measure])
  gains = {}
  for model in models[1:]:
    own = np.array(figures[model][measure])
    gains[model] = {
        "gain": (own - base).tolist(),
        "mean_gain": float(np.mean(own - base)),
        "deviation": (
            float(np.std(own - base, ddof=1)) if len(seeds) > 1 else 0.0),
        "spread": float(max(np.ptp(own), np.ptp(base)))}
  return {"steps": runs[models[0], seeds[0]]["validation"][-1]["step"],
          "seeds": seeds, "models": figures, "gains": gains}


def measure_of(runs: Iterable[dict[str, Any]]) -> str:
  """Returns the measure that ranks runs: LOSS if all have it, else SCORE."""
  return LOSS if all(LOSS in run["validation"][-1] for run in runs) else SCORE


def quality(records: list[dict[str, Any]], measure: str) -> float:
  """Returns the figure that ranks a run: its last loss, or its best score.

  Args:
    records: result of `validation`.
    measure: LOSS or SCORE.
  """
  found = [r[measure] for r in records]
  return found[-1] if measure == LOSS else max(found)


def _speed(train: list[dict[str, Any]]) -> float:
  """Returns the median of tokens per second over the records of a run."""
  return float(np.median([r["tokens_per_second"] for r in train]))


def verdict(result: dict[str, Any]) -> str:
  """Formats a result as a table and one sentence per model but the first."""
  seeds = result["seeds"]
  measure = next(m for m in MEASURES
                 if m in next(iter(result["models"].values())))
  words, unit = MEASURES[measure]
  width = len(f"validation {words}") + 2
  lines = [f"{'':18}{'parameters':>12}{f'validation {words}':>{width}}"
           f"{'tokens/s':>10}"]
  for model, figures in result["models"].items():
    for seed, quality, speed in zip(
        seeds, figures[measure], figures["tokens_per_second"],
        strict=True):
      name = f"{model}, seed {seed}"
      lines.append(f"{name:18}{figures['parameters']:12,}{quality:{width}.4f}"
                   f"{speed:10,.0f}")
  base = next(iter(result["models"]))
  for model, gain in result["gains"].items():
    better = "better" if gain["mean_gain"] > 0 else "WORSE"
    line = (f"{model} is {better} than {base} by {abs(gain['mean_gain']):.4f} "
            f"{unit} after {result['steps']:,} steps each")
    if len(seeds) > 1:
      line += (f" (mean of {len(seeds)} seeds, standard deviation "
               f"{gain['deviation']:.4f}, smallest {min(gain['gain']):.4f}; "
               f"the figures of one model range over {gain['spread']:.4f})")
    lines.append(line + ".")
  return "\n".join(lines)


def draw_curves(
    runs: dict, models: list[str], seeds: list[int], folder: str
) -> str:
  """Plots training and validation loss over steps; returns the file name."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
  measure = measure_of(runs.values())
  for model, color in zip(models, COLORS, strict=False):
    for seed in seeds:
      train = runs[model, seed]["train"]
      steps = [r["step"] for r in train]
      left.plot(steps, [-r["loss"] for r in train], color=color, alpha=0.35,
                linewidth=1)
      points = runs[model, seed]["validation"]
      right.plot([r["step"] for r in points],
                 [r[measure] for r in points], "o-", color=color,
                 alpha=1.0 if seed == seeds[0] else 0.5,
                 label=model if seed == seeds[0] else None)
  left.set(title="training (loss with padding and auxiliary losses)",
           xlabel="step", ylabel="- loss (nats)")
  right.set(title="validation", xlabel="step",
            ylabel=f"{MEASURES[measure][0]} ({MEASURES[measure][1]})")
  _leave_out_start(left)
  _leave_out_start(right)
  right.legend()
  return _save(figure, folder, "curves.png")


def _leave_out_start(axes: plt.Axes) -> None:
  """Limits the y axis to the values after the steep start of training."""
  values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
  low = np.percentile(values, 10) if len(values) > 20 else values.min()
  top = values.max()
  margin = 0.1 * (top - low) or 0.1  # one value has no extent
  axes.set_ylim(low - margin, top + margin)
  axes.grid(alpha=0.3)


def _layers(record: dict[str, Any], metric: str) -> list[str]:
  """Returns the keys of a record with a layer's metric, encoder first.

  A student's record also has its teacher's layers; they are left out.
  """
  return sorted((k for k in record
                 if re.fullmatch(rf"(encoder|decoder)/\w+/\w+/{metric}", k)),
                key=lambda k: (not k.startswith("encoder"), k))


def draw_load(
    train: list[dict[str, Any]], model: str, folder: str
) -> list[str]:
  """Draws heat maps of expert load over steps, one per layer.

  Returns:
    The file name, in a list; an empty list for a dense model.
  """
  keys = _layers(train[-1], LOAD) if train else []
  if not keys:
    return []
  figure, grid = plt.subplots(
      len(keys), 1, figsize=(9, 2.2 * len(keys) + 0.6), squeeze=False)
  steps = [r["step"] for r in train]
  for axes, key in zip(grid[:, 0], keys, strict=True):
    load = np.array([r[key] for r in train]).T
    fair = 1.0 / len(load)
    image = axes.imshow(
        load / fair, aspect="auto", origin="lower", cmap="RdBu_r", vmin=0,
        vmax=2, extent=[steps[0], max(steps[-1], steps[0] + 1), -0.5,
                        len(load) - 0.5])
    axes.set(title=_readable(key), ylabel="expert")
    figure.colorbar(image, ax=axes, label="load / fair share")
  grid[-1, 0].set_xlabel("step")
  return [_save(figure, folder, f"expert_load_{model}.png")]


def draw_sources(
    evaluations: list[dict[str, Any]], model: str, folder: str
) -> list[str]:
  """Draws heat maps of expert load by source of text, one per layer.

  Returns:
    The file name, in a list; an empty list for a dense model, or without
    evaluations by source.
  """
  if not evaluations:
    return []
  last = max(r["step"] for r in evaluations)
  rows = {source_of(r["name"], evaluations): r
          for r in evaluations if r["step"] == last}
  rows.pop("", None)
  keys = _layers(next(iter(rows.values()), {}), LOAD)
  if not keys:
    return []
  figure, grid = plt.subplots(
      len(keys), 1, squeeze=False,
      figsize=(9, (0.35 * len(rows) + 1.1) * len(keys) + 0.6))
  for axes, key in zip(grid[:, 0], keys, strict=True):
    load = np.array([r[key] for r in rows.values()])
    image = axes.imshow(load, aspect="auto", cmap="viridis", vmin=0)
    axes.set(title=_readable(key), yticks=range(len(rows)),
             yticklabels=[name.replace("_", " ") for name in rows],
             xticks=range(load.shape[1]))
    figure.colorbar(image, ax=axes, label="share of tokens")
  grid[-1, 0].set_xlabel("expert")
  return [_save(figure, folder, f"expert_sources_{model}.png")]


def source_of(name: str, evaluations: list[dict[str, Any]]) -> str:
  """Returns the source that an evaluation's name adds to the whole split's."""
  def task(full: str) -> str:
    return full.rsplit("_", 2)[0]  # <task>_<split>_<examples>

  whole = min((task(r["name"]) for r in evaluations), key=len)
  return task(name)[len(whole):].lstrip("_")


def _readable(key: str) -> str:
  """Turns 'encoder/block_000/layer_003/x' into 'encoder, block 0, layer 3'."""
  stack, block, layer, _ = key.split("/")
  return (f"{stack}, block {int(block[-3:])}, layer {int(layer[-3:])}")


def _save(figure: plt.Figure, folder: str, name: str) -> str:
  """Saves and closes a figure; returns its file name."""
  figure.tight_layout()
  figure.savefig(os.path.join(folder, name), dpi=110)
  plt.close(figure)
  return name


def _write_markdown(
    folder: str, title: str, text: str, pictures: list[str], runs: dict,
    models: list[str], seeds: list[int],
) -> None:
  """Writes `report.md` from the verdict, pictures, blanks and settings."""
  parts = [f"# {title}", f"```\n{text}\n```"]
  parts += [f"## {_caption(p)}\n\n![{_caption(p)}]({p})" for p in pictures]
  for model in models:
    found = runs[model, seeds[0]]["blanks"]
    if found:
      parts.append(f"## What {model} writes into blanks\n\n" + "\n".join(
          f"- model: {b['model']}\n  text: {b['truth']}" for b in found))
  for model in models:
    run = runs[model, seeds[0]]
    directory = os.path.relpath(run["directory"], folder)
    parts.append(
        f"## What was chosen for {model}\n\nIn full: "
        f"`{directory}/operative_config.gin`.\n\n```\n{run['choices']}\n```")
  with open(os.path.join(folder, "report.md"), "w") as f:
    f.write("\n\n".join(parts) + "\n")


def _caption(picture: str) -> str:
  """Turns 'expert_load_switch.png' into 'Expert load switch'."""
  return picture.rsplit(".", 1)[0].replace("_", " ").capitalize()
