"""Profiles the time and memory of a step, and the limits of the machine.

  python -m benchmarks.step_profile

Writes results/benchmarks/profile.json, from which `benchmarks.report` makes the
tables of docs/speed.md. For each of `subjects` it has the seconds of a step,
the seconds of its operations by purpose, the rate of its matmuls, the bandwidth
of the other operations, and the memory of the process. For the machine it has
the rates of one large matmul and of copying memory, in TensorFlow and, if
installed, in torch.

TensorFlow runs one operation at a time here, so that the seconds of operations
add up. The other suites run two at a time, which makes a step about a tenth
faster.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness, scale
from benchmarks.harness import Job, Worker
from benchmarks.record import ROOT, Record
from benchmarks.spec import Spec

NAME = "profile"
PATH = os.path.join(ROOT, "results", "benchmarks", f"{NAME}.json")
SQUARE = 2048  # rows and columns of the large matmul
COPIED = 2**26  # entries
REPEATS = 9
SCALED = 8  # experts of the steps on two processors


def subjects(experts: Sequence[int], rivals: Sequence[str]) -> list[Job]:
  """Lists the jobs to profile: a telling part of what the other suites time.

  Args:
    experts: numbers of experts of training steps with a vocabulary of 512; 1 is
      the dense model.
    rivals: rivals to profile besides ours.

  Returns:
    The jobs; a label names subject, task and sizes.
  """
  def train(subject: str, e: int, v: int = 512, **more) -> Job:
    return Job(f"{harness.SHORT[subject]}/train/e{e}/v{v}",
               Spec(subject, "train", experts=e, vocabulary=v, **more))

  jobs = [train("ours", e) for e in experts]
  jobs += [train("ours", e, 32128) for e in (8, 32)]
  jobs += [Job(f"ours/forward_backward/e{e}/c1", Spec(
      "ours", "forward_backward", experts=e, vocabulary=512,
      capacity_factor=1.0)) for e in (1, 32)]
  jobs += [Job(f"ours/layer/e{e}/c1", Spec(
      "ours", "layer", experts=e, batch=64, targets=0, capacity_factor=1.0,
      group_size=4096)) for e in (32, 128)]
  jobs += [Job(f"ours/decode/b{b}/e{e}", Spec(
      "ours", "decode", experts=e, vocabulary=32128, batch=b, inputs=64,
      targets=64)) for b in (1, 8, 32) for e in (8, 128)]
  of_rivals = {"upstream": [(8, 512), (8, 32128), (32, 32128)],
               "hugging_face": [(1, 512), (8, 512), (8, 32128)]}
  for rival in rivals:
    jobs += [train(rival, e, v) for e, v in of_rivals[rival]]
  return jobs


def scaled() -> list[Job]:
  """Returns jobs for a mesh of two processors, in one process and in two."""
  spec = Spec("ours", "train", experts=SCALED, processors=scale.PROCESSES)
  return [Job("ours/two_processors", spec), Job("ours/two_processes", spec)]


def measured(job: Job) -> dict[str, Any]:
  """Profiles one subject in its own process."""
  with Worker(job) as worker:
    worker.wait()
    seconds = worker.go(REPEATS)["seconds"]
    return {
        # The profile's "seconds", by part, replace those of the steps.
        **harness.figures(job, seconds), **worker.profile(),
        "name": job.label, "rss_mb": worker.hello["facts"].get("rss_mb", {})}


def median_seconds(run: Callable[[], Any]) -> float:
  """Returns the median time of `run` over `REPEATS` calls."""
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def torch_rates() -> dict[str, float]:
  """Returns `_rates` of torch; must run before TensorFlow starts threads."""
  import torch
  x, y = torch.rand(SQUARE, SQUARE), torch.rand(COPIED)
  out = torch.empty_like(y)
  return _rates(lambda: torch.mm(x, x), lambda: torch.add(y, 1.0, out=out))


def tensorflow_rates() -> dict[str, float]:
  """Returns `_rates` of TensorFlow."""
  import switch_mtf.upstream  # noqa: F401  # isort:skip  (before tensorflow)
  import tensorflow.compat.v1 as tf
  with tf.Graph().as_default(), tf.Session() as session:
    x, y = (tf.get_variable(name, shape) for name, shape in (
        ("x", [SQUARE, SQUARE]), ("y", [COPIED])))
    session.run(tf.global_variables_initializer())
    matmul, copy = tf.matmul(x, x).op, (y + 1.0).op
    return _rates(lambda: session.run(matmul), lambda: session.run(copy))


def _rates(matmul: Callable, copy: Callable) -> dict[str, float]:
  """Measures GFLOP/s of a large matmul and GB/s read and written by a copy."""
  for warm_up in (matmul, copy):
    warm_up()
  return {"gflop_per_second": 2e-9 * SQUARE**3 / median_seconds(matmul),
          "gb_per_second": 8e-9 * COPIED / median_seconds(copy)}


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile")
  parser.add_argument("--experts", type=int, nargs="+", default=[1, 8, 32, 128])
  parser.add_argument("--rivals", nargs="*", choices=list(harness.SHORT)[1:],
                      default=list(harness.SHORT)[1:])
  parser.add_argument("--output", default=PATH)
  options = parser.parse_args(arguments)
  record = Record(options.output, NAME, {
      "experts": options.experts, "rivals": options.rivals}, False)
  # The worker processes inherit this setting.
  os.environ["TF_NUM_INTEROP_THREADS"] = "1"
  record.data["rates"] = {}
  if importlib.util.find_spec("torch"):
    record.data["rates"]["torch"] = torch_rates()
  record.data["rates"]["tensorflow"] = tensorflow_rates()
  print(f"{NAME}/rates {record.data['rates']}", flush=True)
  record.data["steps"] = []
  ports = scale.free_ports(scale.PROCESSES)
  one, two = scaled()
  two.build.update(scale.over_servers(ports))
  jobs = [*subjects(options.experts, options.rivals), one, two]
  start = time.time()
  for done, job in enumerate(jobs, 1):
    with scale.servers(ports) if job is two else contextlib.nullcontext():
      found = measured(job)
    record.data["steps"].append(found)
    record.save()
    left = (time.time() - start) / done * (len(jobs) - done)
    print(f"{NAME}/{job.label} step={found['step_seconds']:.2f} s, matmul "
          f"{found['matmul_gflop_per_second']:.0f} GFLOP/s; about "
          f"{left / 60:.0f} min left", flush=True)
  record.finish([])


if __name__ == "__main__":
  main(sys.argv[1:])
