"""Draws plots and writes Markdown tables from the suites' records.

  python -m benchmarks.report

Reads results/benchmarks/*.json and draws train_step.png and decode.png beside
them. Replaces the text between two markers in three files: README.md has four
headline figures, docs/speed.md the targets, results/benchmarks/README.md all
tables. A file without markers stays as it is.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

from benchmarks.record import ROOT, read

matplotlib.use("Agg")  # files only, no window
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = os.path.join(ROOT, "results", "benchmarks")
README = os.path.join(ROOT, "README.md")
SPEED = os.path.join(ROOT, "docs", "speed.md")
TABLES = os.path.join(RESULTS, "README.md")
# Result -> what README.md calls it.
HEADLINES = {
    "train_step/hf/e8/v32128": "training, against Hugging Face",
    "train_step/upstream/e8/v32128": "training, against MoE1D",
    "decode/hf/b1/e8": "decoding one sequence, against Hugging Face",
    "decode/hf/b32/e8": "decoding 32 sequences, against Hugging Face"}
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
# Label -> name and colour, in the order of the columns.
SUBJECTS = {"ours": ("switch_mtf", "#c44e52"),
            "hf": ("Hugging Face", "#4c72b0"),
            "upstream": ("MoE1D", "#7f7f7f")}

Points = dict[tuple[int, int], dict[str, float]]


def speeds(record: dict[str, Any], key: str,
           figure: str = "tokens_per_second") -> Points:
  """Collects the tokens per second of every subject.

  Args:
    record: record of a suite that compares subjects.
    key: field of `Spec` that the suite varies besides the experts.
    figure: figure to collect instead, such as "peak_rss_mb".

  Returns:
    (value of the key, experts) -> label -> median over the runs. Groups that do
      not compare subjects are left out.
  """
  found: dict[tuple[int, int], dict[str, list[float]]] = {}
  for group in record["groups"]:
    measurements = group["measurements"]
    if set(measurements) <= set(SUBJECTS):
      for label, one in measurements.items():
        point = one["spec"][key], one["spec"]["experts"]
        found.setdefault(point, {}).setdefault(label, []).append(
            one[figure])
  return {
      point: {label: statistics.median(runs)
              for label, runs in by_label.items()}
      for point, by_label in sorted(found.items())}


def draw(points: Points, title: str, path: str) -> None:
  """Draws tokens per second by experts, in a panel per value of the key.

  Args:
    points: figures, as from `speeds`.
    title: title of a panel, with {} for the value.
    path: file to write.
  """
  values = sorted({value for value, _ in points})
  figure, grid = plt.subplots(
      1, len(values), figsize=(4.6 * len(values), 3.8), squeeze=False)
  for axes, value in zip(grid[0], values, strict=True):
    experts = [e for v, e in points if v == value]
    for label, (name, color) in SUBJECTS.items():
      known = [e for e in experts if label in points[value, e]]
      if known:
        axes.plot([experts.index(e) for e in known],
                  [points[value, e][label] for e in known], "o-", color=color,
                  label=name)
    axes.set(title=title.format(f"{value:,}"), ylabel="tokens/s",
             ylim=(0, None), xlabel="experts", xticks=range(len(experts)),
             xticklabels=["dense" if e == 1 else e for e in experts])
    axes.grid(alpha=0.3)
  grid[0][0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)


def speed_table(points: Points, heading: str) -> str:
  """Formats the figures of the subjects as a Markdown table.

  Args:
    points: figures, as from `speeds`.
    heading: heading of the key's column.

  Returns:
    The table.
  """
  labels = [label for label in SUBJECTS
            if any(label in by_label for by_label in points.values())]
  names = [SUBJECTS[label][0] for label in labels]
  rows = []
  for (value, experts), found in points.items():
    cells = [f"{found[label]:,.0f}" if label in found else "–"
             for label in labels]
    rows.append([f"{value:,}", "dense" if experts == 1 else str(experts),
                 *cells])
  return _table([heading, "experts", *names], rows)


def headlines(records: dict[str, dict[str, Any]]) -> str:
  """Returns the figures of `HEADLINES` as a Markdown table."""
  found = {result["name"]: result for record in records.values()
           for result in record["results"]}
  return _table(["8 experts", "speed-up"], [
      [words, f"{found[name]['value']:.2f}"]
      for name, words in HEADLINES.items() if name in found])


def claims_table(records: dict[str, dict[str, Any]]) -> str:
  """Returns a Markdown table of the claims and the measured figures.

  Ratios without a target are left out.
  """
  rows = []
  for record in records.values():
    for result in record["results"]:
      if result["target"] is None and result["what"] == "ratio":
        continue
      rows.append([
          f"`{result['name']}`", _measured(result), _target(result),
          {True: "yes", False: "**no**", None: ""}[result["ok"]]])
  return _table(["", "measured", "target", "met"], rows)


def _measured(result: dict[str, Any]) -> str:
  """Formats a result's figure, with its range if there were several runs."""
  unit = " s" if result["what"] == "seconds" else ""
  text = f"{result['value']:.2f}{unit}"
  if result["runs"] > 1:
    text += f" ({result['min']:.2f} to {result['max']:.2f})"
  return text


def _target(result: dict[str, Any]) -> str:
  if result["target"] is None:
    return ""
  bound = "at most" if result["at_most"] else "at least"
  return f"{bound} {result['target']:g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def profile_tables(record: dict[str, Any]) -> str:
  """Formats the time and memory of the profiled steps as Markdown.

  Args:
    record: record of `benchmarks.step_profile`.

  Returns:
    Two tables, and sentences on the messages of two processes and on the
      machine's rates.
  """
  steps = record["steps"]
  parts = sorted({part for step in steps for part in step["seconds"]},
                 key=lambda part: -max(step["seconds"].get(part, 0)
                                       for step in steps))
  seconds = [
      [step["name"], f"{step['step_seconds']:.2f}",
       *(_seconds(step, part) for part in parts),
       f"{step['matmul_gflop']:.0f} at {step['matmul_gflop_per_second']:.0f}"]
      for step in steps]
  stages = ("libraries", "graph", "variables")
  memory = [
      [step["name"], *(_mb(step["rss_mb"].get(stage)) for stage in stages),
       _mb(sum(step.get("tensors_mb", {}).values()))]
      for step in steps if step["rss_mb"]]
  could = " ".join(
      f"{library} multiplies two large matrices at "
      f"{rate['gflop_per_second']:.0f} GFLOP/s and copies memory at "
      f"{rate['gb_per_second']:.0f} GB/s (read and written)."
      for library, rate in record["rates"].items())
  return "\n\n".join([
      "Seconds of a step; in brackets GB/s, read and written. On this machine "
      + could,
      _table(["", "step", *parts, "matmul GFLOP at GFLOP/s"], seconds),
      *(_messages(step) for step in steps if step.get("messages")),
      "Memory that a process holds, in MB, after importing its libraries, "
      "making the graph and making the variables; and what a step's tensors "
      "take at their most.",
      _table(["", *stages, "tensors"], memory),
      machine_line(record)])


def _messages(step: dict[str, Any]) -> str:
  """Returns a sentence on the messages and computing time of processes."""
  busy = " and ".join(f"{one:.2f} s" for one in step["busy_seconds"])
  return (f"`{step['name']}`: {step['messages']} messages in a step; the "
          f"processes compute for {busy} of it.")


def _mb(size: float | None) -> str:
  """Formats a number of MB; empty if unknown or 0."""
  return f"{size:,.0f}" if size else ""


def _seconds(step: dict[str, Any], part: str) -> str:
  """Formats the seconds of a part of a step; GB/s in brackets if not matmul."""
  if part not in step["seconds"]:
    return ""
  rate = step.get("gb_per_second", {}).get(part, 0) if part != "matmul" else 0
  seconds = f"{step['seconds'][part]:.3f}"
  return f"{seconds} ({rate:.0f})" if rate else seconds


def machine_line(record: dict[str, Any]) -> str:
  """Returns a sentence on the machine that the figures were measured on."""
  machine = record["machine"]
  versions = ", ".join(
      f"{name} {version}" for name, version in machine["versions"].items()
      if version)
  commit = f"; commit {machine['commit'][:7]}" if machine.get("commit") else ""
  return (f"{machine['processor']}, {machine['cores']} cores; {versions}"
          f"{commit}.")


def markdown(records: dict[str, dict[str, Any]]) -> str:
  """Returns the tables of results/benchmarks/README.md.

  Args:
    records: records by suite, as from `read`.
  """
  parts = []
  if "train_step" in records:
    parts += ["Training, tokens per second:", speed_table(
        speeds(records["train_step"], "vocabulary"), "vocabulary"),
        "![Training](train_step.png)"]
  if "decode" in records:
    parts += ["Greedy decoding, tokens per second:", speed_table(
        speeds(records["decode"], "batch"), "batch"),
        "![Decoding](decode.png)"]
  for suite, key, what in (("train_step", "vocabulary", "training"),
                           ("decode", "batch", "decoding")):
    if suite in records:
      parts += [f"Peak memory, {what}, in MB:", speed_table(
          speeds(records[suite], key, "peak_rss_mb"), key)]
  if "profile" in records:
    parts.append(profile_tables(records["profile"]))
  parts += sorted({machine_line(record) for record in records.values()
                   if record["suite"] != "profile"})
  return "\n\n".join(parts)


def replace(text: str, new: str) -> str:
  """Replaces the part of a text between the markers.

  Args:
    text: text of the whole file.
    new: text to put between the markers.

  Returns:
    The whole text, changed.

  Raises:
    ValueError: if the text does not have both markers, once and in order.
  """
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end or BEGIN in rest or END in after:
    raise ValueError(
        "report: the file must have the markers once and in order, with "
        f"{BEGIN}={text.count(BEGIN)}, {END}={text.count(END)}. Add them where "
        "the tables belong.")
  return f"{before}{begin}\n{new}\n{end}{after}"


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
  parser.add_argument("--results", default=RESULTS)
  parser.add_argument("--readme", default=README)
  parser.add_argument("--speed", default=SPEED)
  parser.add_argument("--tables", default=TABLES)
  options = parser.parse_args(arguments)
  records = read(options.results)
  for name, key, title in (("train_step", "vocabulary", "vocabulary {}"),
                           ("decode", "batch", "batch {}")):
    if name in records:
      draw(speeds(records[name], key), title,
           os.path.join(options.results, f"{name}.png"))
  for path, text in ((options.readme, headlines(records)),
                     (options.speed, claims_table(records)),
                     (options.tables, markdown(records))):
    print(text)
    _rewrite(path, text)


def _rewrite(path: str, new: str) -> None:
  """Puts `new` between the markers of a file, if the file has markers."""
  with open(path) as f:
    text = f.read()
  if BEGIN in text:
    with open(path, "w") as f:
      f.write(replace(text, new))


if __name__ == "__main__":
  main(sys.argv[1:])
