"""The process of one subject: builds the subject and runs steps on command.

  python -m benchmarks.worker '<Spec as JSON>' ['<more arguments of build>']

The process prints one line of JSON once the subject is built and warmed up, and
one for each line that it reads: for `go N` the seconds of N steps, for
`profile` where the time of one step goes. It ends when its input ends. Standard
output has nothing else: what libraries print goes to standard error.
"""

import dataclasses
import json
import os
import re
import resource
import sys
import time
from typing import Any, TextIO

from benchmarks.spec import SUBJECTS, Spec, Subject

WARM_UP = 2  # steps; the first also compiles, allocates and reads


def build(spec: Spec, **options: Any) -> Subject:
  """Builds the subject that `spec` names.

  Only the subject's own libraries are imported, so that neither TensorFlow nor
  torch adds to the memory of the other or takes its threads.

  Args:
    spec: model and task to build.
    **options: further arguments of the subject's own `build`.

  Returns:
    The subject.

  Raises:
    ValueError: if the subject is unknown.
  """
  if spec.subject not in SUBJECTS:
    raise ValueError(
        f"Spec: subject must be one of {', '.join(SUBJECTS)}, with "
        f"subject={spec.subject}. Correct Spec.subject.")
  if spec.subject == "hugging_face":
    from benchmarks import hugging_face
    return hugging_face.build(spec, **options)
  if spec.task == "layer":
    from benchmarks import layer_model
    return layer_model.build(spec)
  if spec.subject == "upstream":
    os.environ["SWITCH_MTF_FAST"] = "0"
  from benchmarks import mesh_model
  return mesh_model.build(spec, **options)


def peak_rss_mb() -> float:
  """Returns the peak memory of this process so far, in MB."""
  try:
    # VmHWM starts with the program; `getrusage` includes its parent's peak.
    with open("/proc/self/status") as f:
      status = f.read()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e6
  except OSError:  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def serve(subject: Subject, commands: TextIO, answers: TextIO) -> None:
  """Answers each `go N` and `profile` until the commands end.

  Args:
    subject: subject to run.
    commands: stream of command lines.
    answers: stream to write the answers to.

  Raises:
    ValueError: if a line is not a command.
  """
  for line in commands:
    verb, _, number = line.strip().partition(" ")
    if verb == "profile":
      _answer(answers, subject.profile())
      continue
    if verb != "go" or not number.isdigit():
      raise ValueError(
          "worker: a line must be `go N` or `profile`, with "
          f"line={line.strip()!r}. Correct what is written to its input.")
    seconds = []
    for _ in range(int(number)):
      start = time.perf_counter()
      subject.step()
      seconds.append(time.perf_counter() - start)
    _answer(answers, {"seconds": seconds, "peak_rss_mb": peak_rss_mb()})


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
  """Writes an answer as one line of JSON."""
  print(json.dumps(values), file=answers, flush=True)


def _take_standard_output() -> TextIO:
  """Returns standard output and redirects later prints to standard error.

  The file descriptor itself is redirected, because libraries also print from
  C++.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  return answers


def main(arguments: list[str]) -> None:
  """Builds a subject, warms it up and serves it.

  Args:
    arguments: the Spec and, optionally, further arguments of `build`, as JSON.
  """
  answers = _take_standard_output()
  spec = Spec(**json.loads(arguments[0]))
  options = json.loads(arguments[1]) if arguments[1:] else {}
  start = time.perf_counter()
  subject = build(spec, **options)
  built = time.perf_counter()
  for _ in range(WARM_UP):
    subject.step()
  _answer(answers, {
      "spec": dataclasses.asdict(spec), "facts": subject.facts,
      "build_seconds": built - start,
      "warm_up_seconds": time.perf_counter() - built,
      "peak_rss_mb": peak_rss_mb()})
  serve(subject, sys.stdin, answers)


if __name__ == "__main__":
  main(sys.argv[1:])
