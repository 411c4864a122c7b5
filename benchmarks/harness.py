"""Measures subjects against each other, by turns, and says how they compare.

A suite is a list of groups and a list of claims. The jobs of a group are each a
process (`benchmarks/worker.py`) that is built once and then takes turns with
the others, A B C A B C ..., so that whatever slows the machine for a while
slows all of them. A claim is the ratio of two of the group's medians.

Neither TensorFlow nor torch is imported here.
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
LOG_CHARACTERS = 3000  # of a worker that failed
BUSY = 0.5  # load average of a machine that does nothing else, at the most


@dataclasses.dataclass(frozen=True)
class Job:
  """One process of a group.

  Attributes:
    label: unique in its group; claims use it.
    spec: what is built.
    build: more arguments of the subject's `build`.
  """

  label: str
  spec: Spec
  build: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
  """What is measured together.

  Attributes:
    name: unique in the suite.
    jobs: in their order of turns.
  """

  name: str
  jobs: tuple[Job, ...]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A ratio of two figures of a group, and what it should be.

  Attributes:
    name: as printed.
    group: name of the group.
    over: label of the numerator's job.
    under: label of the denominator's; None for the figure itself.
    figure: a key of a measurement: "tokens_per_second", "step_seconds" or
      "peak_rss_mb".
    target: None if nothing is claimed.
    at_most: whether the target is the most, and not the least, it may be.
  """

  name: str
  group: str
  over: str
  under: str | None
  figure: str = "tokens_per_second"
  target: float | None = None
  at_most: bool = False

  def value(self, measurements: dict[str, dict[str, Any]]) -> float:
    """The ratio, from the measurements of its group by label."""
    over = measurements[self.over][self.figure]
    if self.under is None:
      return over
    return over / measurements[self.under][self.figure]

  def result(self, values: Sequence[float]) -> dict[str, Any]:
    """For the record; `values` holds one for each run of the suite."""
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
  """Ours and rivals at the same task.

  Args:
    name: of the group.
    rivals: subjects.
    **spec: fields of `Spec` but the subject.

  Returns:
    The group, its jobs labelled as in `SHORT`.
  """
  return Group(name, tuple(
      Job(SHORT[subject], Spec(subject, **spec))
      for subject in ("ours", *rivals)))


def line(result: dict[str, Any]) -> str:
  """'train_step/hf/e32/v512 ratio=1.62 target=1.5 ok'."""
  text = f"{result['name']} {result['what']}={result['value']:.2f}"
  if result["target"] is None:
    return text
  verdict = "ok" if result["ok"] else "MISSED"
  return f"{text} target={result['target']:g} {verdict}"


def _no_check(group: Group, measurements: dict[str, dict[str, Any]]) -> None:
  del group, measurements


@dataclasses.dataclass(frozen=True)
class Suite:
  """Everything that one command measures.

  Attributes:
    name: of the command and of its file in results/benchmarks/.
    groups: in order.
    claims: in the order in which they are printed.
    check: raises if what was measured cannot be compared.
  """

  name: str
  groups: tuple[Group, ...]
  claims: tuple[Claim, ...]
  check: Callable[[Group, dict[str, dict[str, Any]]], None] = _no_check


class Worker:
  """A subject in a process of its own; a context manager.

  Attributes:
    hello: what it said when it was built and warm; see `wait`.
  """

  def __init__(self, job: Job, command: Sequence[str] = COMMAND):
    """Starts the process and does not wait for it."""
    self._label = job.label
    self._log: TextIO = tempfile.TemporaryFile("w+", errors="replace")
    arguments = [json.dumps(dataclasses.asdict(job.spec))]
    if job.build:
      arguments.append(json.dumps(job.build))
    self._process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=self._log, text=True, cwd=ROOT)

  def wait(self) -> None:
    """Waits until it is built and warm."""
    self.hello = self._read()

  def go(self, steps: int) -> dict[str, Any]:
    """Has it do steps; returns the seconds of each and its peak memory."""
    return self._ask(f"go {steps}")

  def profile(self) -> dict[str, Any]:
    """Has it do a step and say where its time went; see `trace.summary`."""
    return self._ask("profile")

  def close(self) -> None:
    """Ends the process: by the end of its input, by force when that fails."""
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
    with contextlib.suppress(BrokenPipeError):  # _read says what happened
      self._process.stdin.write(f"{line}\n")
      self._process.stdin.flush()
    return self._read()

  def _read(self) -> dict[str, Any]:
    answer = self._process.stdout.readline()
    if answer:
      return json.loads(answer)
    code = self._process.wait()
    self._log.seek(0)
    log = self._log.read()[-LOG_CHARACTERS:]
    raise RuntimeError(
        f"benchmarks: a worker must answer, with job={self._label}, exit "
        f"code={code}. Mend what it wrote:\n{log}")

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *exception) -> None:
    self.close()


def measure(
    group: Group, alternations: int, steps: int,
    command: Sequence[str] = COMMAND, tell: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
  """Measures the jobs of a group, by turns.

  Args:
    group: what to measure.
    alternations: turns of each job.
    steps: of each turn.
    command: starts a worker.
    tell: takes lines of progress.

  Returns:
    Label to what was measured.
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
      tell(f"turn {turn} of {alternations}, {left:.0f} s left here")
    return {
        job.label: figures(job, own) | {
            name: worker.hello[name]
            for name in ("facts", "build_seconds", "warm_up_seconds")} | {
                "peak_rss_mb": answer["peak_rss_mb"]}
        for job, own, worker, answer in zip(
            group.jobs, seconds, workers, answers, strict=True)}


def figures(job: Job, seconds: Sequence[float]) -> dict[str, Any]:
  """What the seconds of the steps of a job come to."""
  median = statistics.median(seconds)
  return {
      "spec": dataclasses.asdict(job.spec), "seconds": list(seconds),
      "step_seconds": median, "tokens_per_second": job.spec.tokens / median}


def parser(
    suite: str, *, experts: Sequence[int] = (), vocabulary: Sequence[int] = (),
    rivals: Sequence[str] = (), alternations: int = 7,
) -> argparse.ArgumentParser:
  """The options that suites share.

  Args:
    suite: its name.
    experts: default of --experts; none for a suite without it.
    vocabulary: default of --vocabulary; none for a suite without it.
    rivals: default of --rivals; none for a suite without it.
    alternations: default of --alternations.

  Returns:
    A parser that takes more.
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
  made.add_argument("--steps", type=int, default=1, help="of each turn")
  made.add_argument("--runs", type=int, default=1,
                    help="of the whole suite; the median ratio is printed")
  made.add_argument("--output", default=os.path.join(
      ROOT, "results", "benchmarks", f"{suite}.json"), help="the record")
  made.add_argument("--resume", action="store_true",
                    help="keep the groups that the record already has")
  return made


def add_sizes(made: argparse.ArgumentParser) -> None:
  """Adds the options of suites that can train on other sizes."""
  for name in SIZES:
    made.add_argument(f"--{name}", type=int, default=getattr(Spec, name))


def sizes(options: argparse.Namespace) -> dict[str, int]:
  """What `add_sizes` found: fields of `Spec`."""
  return {name: getattr(options, name) for name in SIZES}


def run(
    suite: Suite, options: argparse.Namespace,
    measure_group: Callable[..., dict[str, dict[str, Any]]] = measure,
) -> list[dict[str, Any]]:
  """Measures, records, and prints a line for each claim.

  Args:
    suite: what to measure.
    options: what `parser` found.
    measure_group: takes what `measure` takes.

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
    _tell(f"{title}: done, about {left / 60:.0f} min left in all")
  results = _results(suite, record, options.runs)
  record.finish(results)
  for result in results:
    print(line(result), flush=True)
  return results


def _results(suite: Suite, record: Record, runs: int) -> list[dict[str, Any]]:
  return [
      claim.result([claim.value(record.find(number, claim.group))
                    for number in range(runs)])
      for claim in suite.claims]


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _warn_if_busy(suite: str, own: int) -> None:
  """Warns if others seem to run: `own` threads of ours are no surprise."""
  load = os.getloadavg()[0]
  if load > own + BUSY:
    _tell(f"{suite}: the machine should do nothing else, with load average="
          f"{load:.2f}, of which ours at most={own}. Stop what else runs, or "
          "do not trust the figures.")
