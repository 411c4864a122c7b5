"""The paper's claims about distillation and fine-tuning, at small scale.

  python -m benchmarks.claims [--runs=runs/small_scale]

Reads the comparisons of `gin/experiments/small_scale/`, as far as they are
there, and writes

  results/distill/, results/finetune/   one JSON a run, with its seed and curve

From these, with those of earlier runs, it makes

  in the same folders                   tables and pictures beside the paper's
  results/claims.json, .md              each claim: the paper's figures, ours

A claim holds if it does with a probability of 95 % for runs like these: by
Student's distribution for differences between runs of one seed. If the opposite
does, it does not hold; else it cannot be told at this scale.
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
# Tables 6 and 7: neg. log perplexity; teachers of four times our experts.
PAPER = {
    "dense": -1.636, "switch_e16": -1.444, "distilled": -1.631,
    "distilled_init": -1.598, "distilled_init_mix": -1.580, "init": -1.639,
    "switch_e4": -1.505, "switch_e64": -1.427, "from_e4": -1.587,
    "from_e64": -1.578}
# Table 4; acceptability and sentiment are two of GLUE's tasks.
GLUE = {
    "dense_d01": 82.9, "switch_d01": 84.7, "switch_d02": 84.4,
    "switch_d03": 83.9, "switch_d01_ed04": 85.2}
# Table 5: closed-book TriviaQA, tuned with one dropout only.
TRIVIA = {"dense_d01": 24.5, "switch_d01_ed04": 30.7}
TEACHER_OF = {"distilled": "switch_e16", "distilled_init": "switch_e16",
              "distilled_init_mix": "switch_e16", "init": "switch_e16",
              "from_e4": "switch_e4", "from_e64": "switch_e64"}

# What the runs of a comparison have in common.
ALIKE = ("MIXTURE_NAME", "train_steps", "batch_size", "sequence_length")

# Model -> a figure for each seed.
Figures = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Claim:
  """Something that the paper says.

  Attributes:
    text: in words.
    where: table of the paper.
    paper: its figures, in words.
    figure: one for each seed; KeyError if a model is missing.
    low: what the mean is to be above.
    high: what it is to be below.
  """

  text: str
  where: str
  paper: str
  figure: Callable[[Figures], np.ndarray]
  low: float = 0.0
  high: float = math.inf


def gain(model: str, over: str) -> Callable[[Figures], np.ndarray]:
  """How much better a model is than another."""
  return lambda figures: figures[model] - figures[over]


def share(figures: Figures, student: str) -> np.ndarray:
  """What a student keeps of its teacher's gain; nan where there is none."""
  return _part(figures[student] - figures["dense"],
               figures[TEACHER_OF[student]] - figures["dense"])


def _part(gained: np.ndarray, possible: np.ndarray) -> np.ndarray:
  """A gain as a part of another; nan where that one is none."""
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

# Comparison -> where in results/, what is claimed of it, the paper's figures.
COMPARISONS = {
    "distillation": ("distill", DISTILLATION, PAPER),
    "acceptability": ("finetune/acceptability", FINE_TUNING, GLUE),
    "sentiment": ("finetune/sentiment", FINE_TUNING, GLUE),
    "closed_book": ("finetune/closed_book", FINE_TUNING, TRIVIA)}


def margin(values: np.ndarray) -> float:
  """Half of the interval that has the mean with 90 %, either side with 95 %."""
  return (STUDENT_95[len(values) - 1] * float(np.std(values, ddof=1))
          / math.sqrt(len(values)))


def judge(values: np.ndarray, low: float = 0.0, high: float = math.inf) -> str:
  """Whether the mean of what the values are drawn from is between two others.

  One value says nothing, nor do values of which one cannot be computed.
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
  """Entries of claims.json, of those whose models were all run."""
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
  """The finished runs of a comparison: (model, seed) -> what they left."""
  found = {}
  for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
    model, _, seed = name.rpartition("_seed")
    if model and os.path.exists(os.path.join(folder, name, "finished.json")):
      found[model, int(seed)] = report.read_run(folder, model, int(seed))
  return found


def as_records(
    runs: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[tuple[str, int], dict[str, Any]]:
  """What is kept of each run."""
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
  """Writes one JSON a run."""
  os.makedirs(folder, exist_ok=True)
  for (model, seed), record in records.items():
    with open(os.path.join(folder, f"{model}_seed{seed}.json"), "w") as f:
      json.dump(record, f, indent=1)
      f.write("\n")


def recorded(folder: str) -> dict[tuple[str, int], dict[str, Any]]:
  """(model, seed) -> the JSON of a run."""
  found = {}
  for path in sorted(glob.glob(os.path.join(folder, "*_seed*.json"))):
    with open(path) as f:
      record = json.load(f)
    found[record["model"], record["seed"]] = record
  return found


def check_alike(
    records: Mapping[tuple[str, int], dict[str, Any]], comparison: str) -> None:
  """Finds runs that cannot be compared: of other data, or of more steps.

  Raises:
    ValueError: if one of `ALIKE` differs.
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
          + f". Run gin/experiments/small_scale/{comparison}.gin as it is, or "
          "delete the JSON files that are of other runs.")


def figures_of(records: Mapping[tuple[str, int], dict[str, Any]],
               order: Sequence[str] = ()) -> Figures:
  """Model -> quality, of the models that were run with all seeds.

  Args:
    records: of `recorded`.
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
  """A row a model: mean, figures by seed, the paper's figure."""
  lines = ["| | ours, mean | ours, by seed | paper |", "|---|--:|---|--:|"]
  for model, values in figures.items():
    by_seed = ", ".join(f"{value:.3f}" for value in values)
    lines.append(f"| {model} | {np.mean(values):.3f} | {by_seed} | "
                 f"{paper.get(model, '')} |")
  return "\n".join(lines) + "\n"


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
  """A row a claim: the paper's figures, ours ± `margin`, the verdict."""
  lines = ["| claim | paper | on | ours | verdict |", "|---|---|---|---|---|"]
  for claim in claims:
    lines.append(
        f"| {claim['claim']} | {claim['where']}: {claim['paper']} "
        f"| {claim['on']} | {in_figures(claim)} | {claim['verdict']} |")
  return "\n".join(lines) + "\n"


def in_figures(claim: Mapping[str, Any]) -> str:
  """What our runs found of a claim, "0.130 ± 0.020"."""
  if claim["mean"] is None:
    return "no figure"
  digits = 3 if claim["on"] == "distillation" else 2
  found = f"{claim['mean']:.{digits}f}"
  return found if claim["margin"] is None else (
      f"{found} ± {claim['margin']:.{digits}f}")


def draw(figures: Figures, paper: Mapping[str, float], title: str, label: str,
         path: str) -> None:
  """A row a model: its mean, a mark for each seed; at the right the paper's."""
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
  """Writes what there is, if anything; returns the claims.

  Args:
    runs_folder: with a folder for each comparison.
    results: where to write.

  Raises:
    ValueError: as `check_alike`, with nothing of that comparison written.
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
  """Prints a line a claim."""
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
          f"runs={arguments.runs}. Begin with gin/experiments/small_scale/"
          "distillation.gin, or set --runs.", file=sys.stderr)
    return 2
  for claim in claims:
    print(f"{claim['on']}: {claim['claim']}: {in_figures(claim)} "
          f"(paper: {claim['paper']}): {claim['verdict']}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
