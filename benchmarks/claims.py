"""Checks the paper's claims on distillation and fine-tuning at small scale.

  python -m benchmarks.claims [--runs=runs/small_scale]

Reads the finished runs of the comparisons in `gin/experiments/small_scale/` and
writes

  results/distill/, results/finetune/   one JSON per run, with its seed and
                                        curve

From these files, including those of earlier runs, it makes

  in the same folders                   tables and plots, with the paper's
                                        figures
  results/claims.json, .md              each claim: the paper's figures, ours

A claim is about a mean over seeds, mostly of differences between runs with the
same seed. It holds if the mean is in the claimed range with a probability of
95 %, by Student's distribution. If the mean is outside with that probability,
the claim does not hold; otherwise this scale cannot tell.
"""

import argparse
import dataclasses
import glob
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.record import ROOT  # noqa: E402
from switch_mtf.comparison import report  # noqa: E402

# One-sided 95 % of Student's distribution, by degrees of freedom.
STUDENT_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132}
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told at this scale"
# Tables 6 and 7: neg. log perplexity. Keys have our number of experts; the
# paper's teachers have four times as many.
PAPER = {
    "dense": -1.636, "switch_e16": -1.444, "distilled": -1.631,
    "distilled_init": -1.598, "distilled_init_mix": -1.580, "init": -1.639,
    "switch_e4": -1.505, "switch_e64": -1.427, "from_e4": -1.587,
    "from_e64": -1.578}
# Table 4; acceptability and sentiment are two of GLUE's tasks.
GLUE = {
    "dense_d01": 82.9, "switch_d01": 84.7, "switch_d02": 84.4,
    "switch_d03": 83.9, "switch_d01_ed04": 85.2}
# Table 5: closed-book TriviaQA, each model tuned with one dropout only.
TRIVIA = {"dense_d01": 24.5, "switch_d01_ed04": 30.7}
TEACHER_OF = {"distilled": "switch_e16", "distilled_init": "switch_e16",
              "distilled_init_mix": "switch_e16", "init": "switch_e16",
              "from_e4": "switch_e4", "from_e64": "switch_e64"}

# Gin macros that must agree between the runs of a comparison.
ALIKE = ("MIXTURE_NAME", "train_steps", "batch_size", "sequence_length")

# Model -> one figure per seed.
Figures = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of the paper.

  Attributes:
    text: the claim in words.
    where: table of the paper.
    paper: the paper's figures, in words.
    figure: function that returns one figure per seed; raises KeyError if a
      model is missing.
    low: the claim says that the mean is above this bound.
    high: the claim says that the mean is below this bound.
  """

  text: str
  where: str
  paper: str
  figure: Callable[[Figures], np.ndarray]
  low: float = 0.0
  high: float = math.inf


def gain(model: str, over: str) -> Callable[[Figures], np.ndarray]:
  """Returns a function that subtracts one model's figures from another's."""
  return lambda figures: figures[model] - figures[over]


def share(figures: Figures, student: str) -> np.ndarray:
  """Returns the part of its teacher's gain over dense that a student keeps.

  The part is nan where the teacher has no gain.
  """
  return _part(figures[student] - figures["dense"],
               figures[TEACHER_OF[student]] - figures["dense"])


def _part(gained: np.ndarray, possible: np.ndarray) -> np.ndarray:
  """Returns `gained / possible`; nan where `possible` is not positive."""
  return np.where(
      possible > 0, gained / np.where(possible > 0, possible, 1), np.nan)


DISTILLATION = (
    Claim("distilling helps", "Table 6", "-1.631 against -1.636",
          gain("distilled", "dense")),
    Claim("the teacher's non-expert weights help", "Table 6",
          "-1.598 against -1.631", gain("distilled_init", "distilled")),
    Claim("mixing in 0.75 of the hard loss helps", "Table 6",
          "-1.580 against -1.598",
          gain("distilled_init_mix", "distilled_init")),
    Claim("it is not the teacher's weights alone that help", "Table 6",
          "-1.580 against -1.639", gain("distilled_init_mix", "init")),
    Claim("16 times the experts in the teacher make a student better by less "
          "than a tenth of that teacher's gain",
          "Table 7", "-1.578 against -1.587, 4 % of the gain",
          lambda f: _part(f["from_e64"] - f["from_e4"],
                          f["switch_e64"] - f["dense"]),
          low=-math.inf, high=0.1),
    Claim("a student keeps about 30 % of its teacher's gain, 20 to 40",
          "Tables 6 and 7", "27 to 37 %",
          lambda f: share(f, "distilled_init_mix"), low=0.2, high=0.4),
)
FINE_TUNING = (
    Claim("a Switch model is better than its dense twin after fine-tuning",
          "Tables 4 and 5", "GLUE 85.2 against 82.9",
          gain("switch_d01_ed04", "dense_d01")),
    Claim("dropout of 0.4 in the experts alone helps", "Table 4",
          "GLUE 85.2 against 84.7, CNNDM 19.6 against 19.1",
          gain("switch_d01_ed04", "switch_d01")),
    Claim("dropout of 0.3 everywhere is worse than 0.1", "Table 4",
          "GLUE 83.9 against 84.7, SuperGLUE 70.7 against 73.0",
          gain("switch_d01", "switch_d03")),
    Claim("a tuned teacher's student is better than a tuned dense model",
          "Table 8", "SuperGLUE 76.6 against 74.6",
          gain("distilled", "dense_d01")),
)

# Comparison -> folder in results/, claims about it, the paper's figures.
COMPARISONS = {
    "distillation": ("distill", DISTILLATION, PAPER),
    "acceptability": ("finetune/acceptability", FINE_TUNING, GLUE),
    "sentiment": ("finetune/sentiment", FINE_TUNING, GLUE),
    "closed_book": ("finetune/closed_book", FINE_TUNING, TRIVIA)}


def margin(values: np.ndarray) -> float:
  """Returns half the width of the 90 % confidence interval of the mean.

  Each of its two bounds holds with 95 %.
  """
  return (STUDENT_95[len(values) - 1] * float(np.std(values, ddof=1))
          / math.sqrt(len(values)))


def judge(values: np.ndarray, low: float = 0.0, high: float = math.inf) -> str:
  """Judges whether the mean of the values' distribution is between two bounds.

  Returns:
    HOLDS, FAILS or OPEN. A single value, or one that is not finite, leaves the
      question OPEN.
  """
  if len(values) < 2 or not np.isfinite(values).all():
    return OPEN
  mean, half = float(np.mean(values)), margin(values)
  if low < mean - half and mean + half < high:
    return HOLDS
  return FAILS if mean + half < low or mean - half > high else OPEN


def judged(
    claims: Sequence[Claim], figures: Figures, comparison: str
) -> Iterator[dict[str, Any]]:
  """Yields the entries of claims.json for claims whose models were all run."""
  for claim in claims:
    try:
      values = claim.figure(figures)
    except KeyError:
      continue
    known = np.isfinite(values).all()
    yield {"on": comparison, "claim": claim.text, "where": claim.where,
           "paper": claim.paper,
           "ours": [v if math.isfinite(v) else None for v in values.tolist()],
           "mean": float(np.mean(values)) if known else None,
           "margin": margin(values) if known and len(values) > 1 else None,
           "verdict": judge(values, claim.low, claim.high)}


def read(folder: str) -> dict[tuple[str, int], dict[str, Any]]:
  """Reads a comparison's finished runs: (model, seed) -> `report.read_run`."""
  found = {}
  for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
    model, _, seed = name.rpartition("_seed")
    if model and os.path.exists(os.path.join(folder, name, "finished.json")):
      found[model, int(seed)] = report.read_run(folder, model, int(seed))
  return found


def as_records(
    runs: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[tuple[str, int], dict[str, Any]]:
  """Returns (model, seed) -> the part of each run that its JSON keeps."""
  measure = report.measure_of(runs.values())
  return {(model, seed): {
      "model": model, "seed": seed, "measure": measure,
      "quality": report.quality(run["validation"], measure),
      "curve": [[r["step"], r[measure]] for r in run["validation"]],
      "parameters": run["parameters"],
      "choices": run["choices"].splitlines()}
          for (model, seed), run in runs.items()}


def write_records(
    records: Mapping[tuple[str, int], dict[str, Any]], folder: str) -> None:
  """Writes one JSON per run."""
  os.makedirs(folder, exist_ok=True)
  for (model, seed), record in records.items():
    with open(os.path.join(folder, f"{model}_seed{seed}.json"), "w") as f:
      json.dump(record, f, indent=1)
      f.write("\n")


def recorded(folder: str) -> dict[tuple[str, int], dict[str, Any]]:
  """Reads the JSON files of a folder: (model, seed) -> record of the run."""
  found = {}
  for path in sorted(glob.glob(os.path.join(folder, "*_seed*.json"))):
    with open(path) as f:
      record = json.load(f)
    found[record["model"], record["seed"]] = record
  return found


def check_alike(
    records: Mapping[tuple[str, int], dict[str, Any]], comparison: str) -> None:
  """Checks that the runs had the same data, batch sizes and number of steps.

  Raises:
    ValueError: if the runs differ in one of `ALIKE`.
  """
  for name in ALIKE:
    found = {}
    for (model, seed), record in records.items():
      for choice in record["choices"]:
        if choice.startswith(f"{name} = "):
          found.setdefault(choice, f"{model}_seed{seed}")
    if len(found) > 1:
      raise ValueError(
          f"claims: the runs of a comparison must have the same {name}, with "
          + ", ".join(f"{choice} in {run}" for choice, run in found.items())
          + f". Run gin/experiments/small_scale/{comparison}.gin unchanged, or "
          "delete the JSON files of other runs.")


def figures_of(records: Mapping[tuple[str, int], dict[str, Any]],
               order: Sequence[str] = ()) -> Figures:
  """Returns model -> quality by seed, for models that were run with all seeds.

  Args:
    records: records of the runs, as from `recorded`.
    order: models that come first.
  """
  seeds = sorted({seed for _, seed in records})
  known = {model for model, _ in records}
  return {
      model: np.array([records[model, seed]["quality"] for seed in seeds])
      for model in (*filter(known.__contains__, order),
                    *sorted(known.difference(order)))
      if all((model, seed) in records for seed in seeds)}


def table(figures: Figures, paper: Mapping[str, float]) -> str:
  """Returns a Markdown table: per model, our mean, our figures, the paper's."""
  lines = ["| | ours, mean | ours, by seed | paper |", "|---|--:|---|--:|"]
  for model, values in figures.items():
    by_seed = ", ".join(f"{value:.3f}" for value in values)
    lines.append(f"| {model} | {np.mean(values):.3f} | {by_seed} | "
                 f"{paper.get(model, '')} |")
  return "\n".join(lines) + "\n"


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
  """Returns a Markdown table: per claim, the paper's figures, ours, verdict."""
  lines = ["| claim | paper | on | ours | verdict |", "|---|---|---|---|---|"]
  for claim in claims:
    lines.append(
        f"| {claim['claim']} | {claim['where']}: {claim['paper']} "
        f"| {claim['on']} | {in_figures(claim)} | {claim['verdict']} |")
  return "\n".join(lines) + "\n"


def in_figures(claim: Mapping[str, Any]) -> str:
  """Formats our mean and margin of a claim, as in "0.130 ± 0.020"."""
  if claim["mean"] is None:
    return "no figure"
  digits = 3 if claim["on"] == "distillation" else 2
  found = f"{claim['mean']:.{digits}f}"
  return found if claim["margin"] is None else (
      f"{found} ± {claim['margin']:.{digits}f}")


def draw(figures: Figures, paper: Mapping[str, float], title: str, label: str,
         path: str) -> None:
  """Draws a row per model: our mean and seeds; the paper's figure beside it."""
  figure, (ours, papers) = plt.subplots(
      1, 2, sharey=True, figsize=(10, 0.4 * len(figures) + 1.6))
  for row, (model, values) in enumerate(figures.items()):
    ours.plot([np.mean(values)], [row], "o", color="#c44e52")
    ours.plot(values, [row] * len(values), "|", color="#4c72b0", markersize=14)
    if model in paper:
      papers.plot([paper[model]], [row], "s", color="#55a868")
  ours.set(yticks=range(len(figures)), yticklabels=list(figures), title=title,
           xlabel=label)
  papers.set(title="the paper's", xlabel="of larger models")
  papers.locator_params(axis="x", nbins=5)
  ours.invert_yaxis()
  for axes in (ours, papers):
    axes.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def write_all(runs_folder: str, results: str) -> list[dict[str, Any]]:
  """Writes records, tables, plots and claims, as far as there are runs.

  Args:
    runs_folder: folder with a subfolder per comparison.
    results: folder to write to.

  Returns:
    The entries of claims.json.

  Raises:
    ValueError: as `check_alike`, before anything of that comparison is written.
  """
  claims = []
  for name, (folder, about, paper) in COMPARISONS.items():
    folder = os.path.join(results, folder)
    new = as_records(read(os.path.join(runs_folder, name)))
    records = recorded(folder) | new
    if not records:
      continue
    check_alike(records, name)
    write_records(new, folder)
    figures = figures_of(records, list(paper))
    words, unit = report.MEASURES[next(iter(records.values()))["measure"]]
    draw(figures, paper, name.replace("_", " "), f"{words} ({unit})",
         os.path.join(folder, f"{name}.png"))
    with open(os.path.join(folder, f"{name}.md"), "w") as f:
      f.write(table(figures, paper))
    claims += judged(about, figures, name)
  if not claims:
    return claims
  with open(os.path.join(results, "claims.json"), "w") as f:
    json.dump(claims, f, indent=1)
    f.write("\n")
  with open(os.path.join(results, "claims.md"), "w") as f:
    f.write(claims_table(claims))
  return claims


def main() -> int:
  """Writes the results and prints a line per claim; returns the exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m benchmarks.claims", description=__doc__.split("\n")[0])
  parser.add_argument("--runs", default="runs/small_scale",
                      help="folder of the comparisons (default: %(default)s)")
  arguments = parser.parse_args()
  try:
    claims = write_all(arguments.runs, os.path.join(ROOT, "results"))
  except ValueError as error:
    print(error, file=sys.stderr)
    return 2
  if not claims:
    print("claims: a comparison must have been run, with "
          f"runs={arguments.runs}. Start with gin/experiments/small_scale/"
          "distillation.gin, or set --runs.", file=sys.stderr)
    return 2
  for claim in claims:
    print(f"{claim['on']}: {claim['claim']}: {in_figures(claim)} "
          f"(paper: {claim['paper']}): {claim['verdict']}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
