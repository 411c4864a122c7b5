"""Compares the peak memory of the processes that train and decode.

  python -m benchmarks.memory

Every subject of `train_step` and `decode` runs in its own process and reports
its peak memory, including libraries, building and warm-up. This command reads
those peaks from the records of all runs. A ratio is our peak over the rival's;
less is better.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim
from benchmarks.record import ROOT, Record, read

NAME = "memory"
RESULTS = os.path.join(ROOT, "results", "benchmarks")
TARGET = 1.0  # against Hugging Face
SUITES = {"train_step": "train", "decode": "decode"}  # suite -> task


def results(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
  """Computes the ratios of the peaks.

  Args:
    records: suite -> complete record.

  Returns:
    A result for each group of `SUITES` and each rival in it, in the format of
      the other suites: the median of the ratios of the runs.
  """
  found = []
  for suite, task in SUITES.items():
    runs: dict[str, list[dict[str, Any]]] = {}
    for group in records[suite]["groups"] if suite in records else []:
      runs.setdefault(group["name"], []).append(group["measurements"])
    for name, measured in runs.items():
      for rival in ("hf", "upstream"):
        if {"ours", rival} <= set(measured[0]):
          claim = _claim(f"{task}/{name}", rival)
          found.append(claim.result([claim.value(one) for one in measured]))
  return found


def _claim(what: str, rival: str) -> Claim:
  """Builds a claim on peak memory; only Hugging Face's has a target."""
  if rival == "hf":
    return Claim(f"{NAME}/{what}", what, "ours", rival, "peak_rss_mb", TARGET,
                 at_most=True)
  return Claim(f"{NAME}/{rival}/{what}", what, "ours", rival, "peak_rss_mb",
               at_most=True)


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.

  Raises:
    ValueError: if no record is complete, or the records come from different
      machines or commits.
  """
  parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}")
  parser.add_argument("--results", default=RESULTS,
                      help="folder of the records, read and written")
  options = parser.parse_args(arguments)
  records = {suite: record for suite, record in read(options.results).items()
             if suite in SUITES}
  if not records:
    raise ValueError(
        f"{NAME}: there must be a complete record of {' or '.join(SUITES)}, "
        f"with --results={options.results}. Run python -m benchmarks."
        f"{next(iter(SUITES))} first.")
  machines = [record["machine"] for record in records.values()]
  if machines.count(machines[0]) < len(machines):
    raise ValueError(
        f"{NAME}: the records must come from one machine and commit, with "
        f"machines={dict(zip(records, machines, strict=True))}. Measure both "
        "again.")
  record = Record(os.path.join(options.results, f"{NAME}.json"), NAME, {},
                  resume=False)
  record.data["machine"] = machines[0]
  record.finish(results(records))
  for result in record.data["results"]:
    print(harness.line(result))


if __name__ == "__main__":
  main(sys.argv[1:])
