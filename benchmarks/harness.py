"""Measures subjects in alternating turns and compares them.

A suite is a list of groups and a list of claims. Each job of a group is a
process (`benchmarks/worker.py`) that is built once and then takes turns with
the others, A B C A B C ..., so that whatever slows the machine for a while
slows all of them. A claim is the ratio of two medians of a group.

This module imports neither TensorFlow nor torch.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from benchmarks.record import ROOT, Record
from benchmarks.spec import Spec

COMMAND = (sys.executable, "-m", "benchmarks.worker")
SHORT = {"ours": "ours", "upstream": "upstream", "hugging_face": "hf"}
SIZES = ("batch", "inputs", "targets")
LOG_CHARACTERS = 3000  # shown from the end of a failed worker's log
BUSY = 0.5  # largest load average of a machine that does nothing else


@dataclasses.dataclass(frozen=True)
class Job:
  """One process of a group.

  Attributes:
    label: name by which claims refer to the job; unique in its group.
    spec: subject and task.
    build: further arguments of the subject's `build`.
  """

  label: str
  spec: Spec
  build: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
  """Jobs that are measured together.

  Attributes:
    name: name of the group; unique in the suite.
    jobs: the jobs, in the order of their turns.
  """

  name: str
  jobs: tuple[Job, ...]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A ratio of two figures of a group, with its target.

  Attributes:
    name: name that is printed.
    group: name of the group.
    over: label of the numerator's job.
    under: label of the denominator's job; None claims the numerator itself.
    figure: key of a measurement: "tokens_per_second", "step_seconds" or
      "peak_rss_mb".
    target: bound of the ratio; None if nothing is claimed.
    at_most: whether the target is an upper bound; otherwise it is a lower one.
  """

  name: str
  group: str
  over: str
  under: str | None
  figure: str = "tokens_per_second"
  target: float | None = None
  at_most: bool = False

  def value(self, measurements: dict[str, dict[str, Any]]) -> float:
    """Returns the ratio, given the measurements of the group by label."""
    over = measurements[self.over][self.figure]
    if self.under is None:
      return over
    return over / measurements[self.under][self.figure]

  def result(self, values: Sequence[float]) -> dict[str, Any]:
    """Returns the record's entry, given the value of each run of the suite."""
    value = statistics.median(values)
    ok = None
    if self.target is not None:
      ok = value <= self.target if self.at_most else value >= self.target
    return {
        "name": self.name, "what": "ratio" if self.under else "seconds",
        "value": value, "min": min(values), "max": max(values),
        "runs": len(values), "target": self.target, "at_most": self.at_most,
        "ok": ok}


def rivals_group(
    name: str, rivals: Sequence[str], **spec: Any
) -> Group:
  """Builds a group in which ours and the rivals do the same task.

  Args:
    name: name of the group.
    rivals: subjects to compare ours with.
    **spec: fields of `Spec` except the subject.

  Returns:
    The group, with its jobs labelled as in `SHORT`.
  """
  return Group(name, tuple(
      Job(SHORT[subject], Spec(subject, **spec))
      for subject in ("ours", *rivals)))


def line(result: dict[str, Any]) -> str:
  """Formats a result: 'train_step/hf/e32/v512 ratio=1.62 target=1.5 ok'."""
  text = f"{result['name']} {result['what']}={result['value']:.2f}"
  if result["target"] is None:
    return text
  verdict = "ok" if result["ok"] else "MISSED"
  return f"{text} target={result['target']:g} {verdict}"


def _no_check(group: Group, measurements: dict[str, dict[str, Any]]) -> None:
  """Accepts all measurements."""
  del group, measurements


@dataclasses.dataclass(frozen=True)
class Suite:
  """Everything that one command measures.

  Attributes:
    name: name of the command and of its file in results/benchmarks/.
    groups: groups, in the order of measuring.
    claims: claims, in the order of printing.
    check: function that raises if measurements of a group cannot be compared.
  """

  name: str
  groups: tuple[Group, ...]
  claims: tuple[Claim, ...]
  check: Callable[[Group, dict[str, dict[str, Any]]], None] = _no_check


class Worker:
  """A subject in its own process; a context manager.

  Attributes:
    hello: the process's first answer, known after `wait`.
  """

  def __init__(self, job: Job, command: Sequence[str] = COMMAND):
    """Starts the process without waiting for it."""
    self._label = job.label
    self._log: TextIO = tempfile.TemporaryFile("w+", errors="replace")
    arguments = [json.dumps(dataclasses.asdict(job.spec))]
    if job.build:
      arguments.append(json.dumps(job.build))
    self._process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=self._log, text=True, cwd=ROOT)

  def wait(self) -> None:
    """Waits until the subject is built and warmed up."""
    self.hello = self._read()

  def go(self, steps: int) -> dict[str, Any]:
    """Runs steps; returns "seconds" of each step and "peak_rss_mb"."""
    return self._ask(f"go {steps}")

  def profile(self) -> dict[str, Any]:
    """Profiles a step; returns where its time went, as `trace.summary`."""
    return self._ask("profile")

  def close(self) -> None:
    """Ends the process by closing its input, or by killing it after 30 s."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=30)
    except BaseException as error:
      self._process.kill()
      self._process.wait()
      if not isinstance(error, subprocess.TimeoutExpired):
        raise
    self._process.stdout.close()
    self._log.close()

  def _ask(self, line: str) -> dict[str, Any]:
    """Sends a command and returns its answer."""
    with contextlib.suppress(BrokenPipeError):  # _read reports the failure
      self._process.stdin.write(f"{line}\n")
      self._process.stdin.flush()
    return self._read()

  def _read(self) -> dict[str, Any]:
    """Reads an answer; raises RuntimeError with the log if there is none."""
    answer = self._process.stdout.readline()
    if answer:
      return json.loads(answer)
    code = self._process.wait()
    self._log.seek(0)
    log = self._log.read()[-LOG_CHARACTERS:]
    raise RuntimeError(
        f"benchmarks: a worker must answer, with job={self._label}, exit "
        f"code={code}. Fix the error in its log:\n{log}")

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *exception) -> None:
    self.close()


def measure(
    group: Group, alternations: int, steps: int,
    command: Sequence[str] = COMMAND, tell: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
  """Measures the jobs of a group in alternating turns.

  Args:
    group: group to measure.
    alternations: number of turns of each job.
    steps: number of steps of each turn.
    command: command that starts a worker.
    tell: function that takes lines of progress.

  Returns:
    Label -> measurements of the job.
  """
  with contextlib.ExitStack() as stack:
    tell(f"building {', '.join(job.label for job in group.jobs)}")
    workers = [
        stack.enter_context(Worker(job, command)) for job in group.jobs]
    for worker in workers:
      worker.wait()
    seconds: list[list[float]] = [[] for _ in workers]
    start = time.time()
    for turn in range(1, alternations + 1):
      answers = []
      for worker, own in zip(workers, seconds, strict=True):
        answers.append(worker.go(steps))
        own += answers[-1]["seconds"]
      left = (time.time() - start) / turn * (alternations - turn)
      tell(f"turn {turn} of {alternations}, {left:.0f} s left for the group")
    return {
        job.label: figures(job, own) | {
            name: worker.hello[name]
            for name in ("facts", "build_seconds", "warm_up_seconds")} | {
                "peak_rss_mb": answer["peak_rss_mb"]}
        for job, own, worker, answer in zip(
            group.jobs, seconds, workers, answers, strict=True)}


def figures(job: Job, seconds: Sequence[float]) -> dict[str, Any]:
  """Returns a job's measurements, given the seconds of its steps."""
  median = statistics.median(seconds)
  return {
      "spec": dataclasses.asdict(job.spec), "seconds": list(seconds),
      "step_seconds": median, "tokens_per_second": job.spec.tokens / median}


def parser(
    suite: str, *, experts: Sequence[int] = (), vocabulary: Sequence[int] = (),
    rivals: Sequence[str] = (), alternations: int = 7,
) -> argparse.ArgumentParser:
  """Builds a parser of the options that suites share.

  Args:
    suite: name of the suite.
    experts: default of --experts; if empty, the suite has no such option.
    vocabulary: default of --vocabulary; if empty, no such option.
    rivals: default of --rivals; if empty, no such option.
    alternations: default of --alternations.

  Returns:
    The parser, to which a suite may add options.
  """
  made = argparse.ArgumentParser(
      prog=f"python -m benchmarks.{suite}",
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  if experts:
    made.add_argument("--experts", type=int, nargs="+", default=list(experts))
  if vocabulary:
    made.add_argument(
        "--vocabulary", type=int, nargs="+", default=list(vocabulary))
  if rivals:
    made.add_argument(
        "--rivals", nargs="*", default=list(rivals), choices=rivals)
  made.add_argument("--alternations", type=int, default=alternations,
                    help="turns of each process")
  made.add_argument("--steps", type=int, default=1, help="steps of each turn")
  made.add_argument("--runs", type=int, default=1,
                    help="runs of the whole suite; prints the median ratio")
  made.add_argument("--output", default=os.path.join(
      ROOT, "results", "benchmarks", f"{suite}.json"), help="file to write")
  made.add_argument("--resume", action="store_true",
                    help="keep the groups that the record already has")
  return made


def add_sizes(made: argparse.ArgumentParser) -> None:
  """Adds the options --batch, --inputs and --targets to a suite's parser."""
  for name in SIZES:
    made.add_argument(f"--{name}", type=int, default=getattr(Spec, name))


def sizes(options: argparse.Namespace) -> dict[str, int]:
  """Returns the values of the options of `add_sizes`, as fields of `Spec`."""
  return {name: getattr(options, name) for name in SIZES}


def run(
    suite: Suite, options: argparse.Namespace,
    measure_group: Callable[..., dict[str, dict[str, Any]]] = measure,
) -> list[dict[str, Any]]:
  """Measures a suite, records it and prints a line for each claim.

  Args:
    suite: suite to run.
    options: parsed options of `parser`.
    measure_group: replacement for `measure`; is called without `command`.

  Returns:
    The results of the claims, as in the record.
  """
  kept = {name: value for name, value in vars(options).items()
          if name not in ("output", "resume")}
  record = Record(options.output, suite.name, kept, options.resume)
  _warn_if_busy(suite.name, 0)
  todo = [(number, group) for number in range(options.runs)
          for group in suite.groups if not record.find(number, group.name)]
  start = time.time()
  for done, (number, group) in enumerate(todo):
    title = f"{suite.name}: {group.name} ({done + 1} of {len(todo)})"
    load = os.getloadavg()[0]
    found = measure_group(
        group, options.alternations, options.steps,
        tell=lambda text, title=title: _tell(f"{title}: {text}"))
    suite.check(group, found)
    record.add(number, group.name, load, found)
    _warn_if_busy(suite.name, os.cpu_count() or 1)
    left = (time.time() - start) / (done + 1) * (len(todo) - done - 1)
    _tell(f"{title}: done, about {left / 60:.0f} min left in total")
  results = _results(suite, record, options.runs)
  record.finish(results)
  for result in results:
    print(line(result), flush=True)
  return results


def _results(suite: Suite, record: Record, runs: int) -> list[dict[str, Any]]:
  """Returns the result of each claim over all runs."""
  return [
      claim.result([claim.value(record.find(number, claim.group))
                    for number in range(runs)])
      for claim in suite.claims]


def _tell(text: str) -> None:
  """Prints a line of progress, to standard error."""
  print(text, file=sys.stderr, flush=True)


def _warn_if_busy(suite: str, own: int) -> None:
  """Warns if the load exceeds that of `own` busy threads of ours."""
  load = os.getloadavg()[0]
  if load > own + BUSY:
    _tell(f"{suite}: the machine should do nothing else, with load average="
          f"{load:.2f}, our own load at most={own}. Stop other processes, or "
          "do not trust the figures.")
