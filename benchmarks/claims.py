"""The paper's claims about distillation and fine-tuning, at small scale.

  python -m benchmarks.claims [--runs=runs/small_scale]

Reads the comparisons of `gin/experiments/small_scale/`, as far as they are
there, and writes

  results/distill/, results/finetune/   one JSON a run, with its seed and curve;
                                        tables and pictures beside the paper's
  results/claims.json, .md              each claim: the paper's figures, ours

A claim holds if it does with a probability of 95 % for runs like these: by
Student's distribution for differences between runs of one seed. If the opposite
does, it does not hold; else it cannot be told at this scale.
"""

import argparse
import dataclasses
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
from switch_mtf.training import best, report  # noqa: E402

# One-sided 95 % of Student's distribution, by degrees of freedom.
STUDENT_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132}
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told at this scale"
# Tables 6 and 7: neg. log perplexity; teachers of four times our experts.
PAPER = {
    "dense": -1.636, "switch_e16": -1.444, "distilled": -1.631,
    "distilled_init": -1.598, "distilled_init_mix": -1.580, "init": -1.639,
    "switch_e4": -1.505, "switch_e64": -1.427, "from_e4": -1.587,
    "from_e64": -1.578}
# Table 4: GLUE.
PAPER_TUNED = {
    "dense_d01": 82.9, "switch_d01": 84.7, "switch_d02": 84.4,
    "switch_d03": 83.9, "switch_d01_ed04": 85.2}
TEACHER_OF = {"distilled": "switch_e16", "distilled_init": "switch_e16",
              "distilled_init_mix": "switch_e16", "init": "switch_e16",
              "from_e4": "switch_e4", "from_e64": "switch_e64"}

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
    claims: Sequence[Claim], figures: Figures, measure: str
) -> Iterator[dict[str, Any]]:
  """Entries of claims.json, of those whose models were all run."""
  for claim in claims:
    try:
      values = claim.figure(figures)
    except KeyError:
      continue
    known = np.isfinite(values).all()
    yield {"by": measure, "claim": claim.text, "where": claim.where,
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
    directory = os.path.join(folder, name)
    if model and os.path.exists(os.path.join(directory, "finished.json")):
      found[model, int(seed)] = {
          **report.read_run(folder, model, int(seed)),
          "best": best.best(directory)}
  return found


def figures_of(runs: Mapping[tuple[str, int], dict[str, Any]]
               ) -> dict[str, Figures]:
  """What models are compared by, of those that were run with all seeds.

  Returns:
    In words, with the unit -> model -> a figure for each seed: the loss or, of
      runs whose tasks were scored, the mean over the tasks, and each task's own
      best.
  """
  seeds = sorted({seed for _, seed in runs})
  measure = report.measure_of(runs.values())
  all_seeds = [model for model in dict.fromkeys(model for model, _ in runs)
               if all((model, seed) in runs for seed in seeds)]

  def collect(figure: Callable[[dict[str, Any]], float]) -> Figures:
    return {model: np.array([figure(runs[model, seed]) for seed in seeds])
            for model in all_seeds}

  words, unit = report.MEASURES[measure]
  found = {f"{words} ({unit})": collect(
      lambda run: report.quality(run["validation"], measure))}
  for task in sorted(set().union(*(run["best"] for run in runs.values()))):
    found[f"{task} (points)"] = collect(
        lambda run, task=task: run["best"][task]["score"])
  return found


def write_runs(
    runs: Mapping[tuple[str, int], dict[str, Any]], folder: str) -> None:
  """Writes one JSON a run."""
  os.makedirs(folder, exist_ok=True)
  measure = report.measure_of(runs.values())
  for (model, seed), run in runs.items():
    with open(os.path.join(folder, f"{model}_seed{seed}.json"), "w") as f:
      json.dump({
          "model": model, "seed": seed, "measure": measure,
          "quality": report.quality(run["validation"], measure),
          "curve": [[r["step"], r[measure]] for r in run["validation"]],
          "tasks": run["best"],
          "parameters": run["parameters"],
          "choices": run["choices"].splitlines()}, f, indent=1)
      f.write("\n")


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
  lines = ["| claim | paper | by | ours | verdict |", "|---|---|---|---|---|"]
  for claim in claims:
    lines.append(
        f"| {claim['claim']} | {claim['where']}: {claim['paper']} "
        f"| {claim['by']} | {in_figures(claim)} | {claim['verdict']} |")
  return "\n".join(lines) + "\n"


def in_figures(claim: Mapping[str, Any]) -> str:
  """What our runs found of a claim, "0.130 ± 0.020"."""
  if claim["mean"] is None:
    return "no figure"
  digits = 2 if "points" in claim["by"] else 3
  found = f"{claim['mean']:.{digits}f}"
  return found if claim["margin"] is None else (
      f"{found} ± {claim['margin']:.{digits}f}")


def draw(found: Mapping[str, Figures], paper: Mapping[str, float], title: str,
         path: str) -> None:
  """A row a model: its mean, a mark for each seed; at the right the paper's."""
  models = list(next(iter(found.values())))
  figure, panels = plt.subplots(
      1, len(found) + 1, sharey=True, squeeze=False,
      figsize=(2.5 + 3.2 * (len(found) + 1), 0.4 * len(models) + 1.6))
  *ours, papers = panels[0]
  for axes, (measure, figures) in zip(ours, found.items(), strict=True):
    for row, values in enumerate(figures.values()):
      axes.plot([np.mean(values)], [row], "o", color="#c44e52")
      axes.plot(values, [row] * len(values), "|", color="#4c72b0",
                markersize=14)
    axes.set_xlabel(measure, fontsize=8)
  for row, model in enumerate(models):
    if model in paper:
      papers.plot([paper[model]], [row], "s", color="#55a868")
  papers.set_xlabel("the paper's, of larger models", fontsize=8)
  ours[0].set(yticks=range(len(models)), yticklabels=models, title=title)
  ours[0].invert_yaxis()
  for axes in panels[0]:
    axes.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def write_all(runs_folder: str, results: str) -> list[dict[str, Any]]:
  """Writes what there is, if anything; returns the claims.

  Args:
    runs_folder: with a folder for each comparison.
    results: where to write.
  """
  claims = []
  for name, folder, about, paper in (
      ("distillation", "distill", DISTILLATION, PAPER),
      ("fine_tuning", "finetune", FINE_TUNING, PAPER_TUNED)):
    runs = read(os.path.join(runs_folder, name))
    if not runs:
      continue
    folder = os.path.join(results, folder)
    write_runs(runs, folder)
    found = figures_of(runs)
    draw(found, paper, name.replace("_", " "),
         os.path.join(folder, f"{name}.png"))
    with open(os.path.join(folder, f"{name}.md"), "w") as f:
      f.write("\n".join(f"{measure}\n\n{table(figures, paper)}"
                        for measure, figures in found.items()))
    for measure, figures in found.items():
      claims += judged(about, figures, measure)
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
  claims = write_all(arguments.runs, os.path.join(ROOT, "results"))
  if not claims:
    print("claims: a comparison must have been run, with "
          f"runs={arguments.runs}. Begin with gin/experiments/small_scale/"
          "distillation.gin, or set --runs.", file=sys.stderr)
    return 2
  for claim in claims:
    print(f"{claim['by']}: {claim['claim']}: {in_figures(claim)} "
          f"(paper: {claim['paper']}): {claim['verdict']}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
