"""Measures the cost of splitting a model over processors and processes.

  python -m benchmarks.scale

The same training step runs in alternating turns as

  one_processor    one process, a mesh of one processor
  two_processors   one process, a mesh of two: batch and experts are split
  two_processes    that mesh over two TensorFlow servers, which talk by gRPC

Two processes on one machine share the cores that one process has, so
two_processes is at best as fast as two_processors.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim, Group, Job
from benchmarks.record import ROOT
from benchmarks.spec import Spec

NAME = "scale"
PROCESSES = 2
TARGET = 0.95
READY = "ready"
SERVE = "--serve"


def devices() -> list[str]:
  """Returns TensorFlow's name of the CPU of each server."""
  return [f"/job:worker/task:{i}/device:CPU:0" for i in range(PROCESSES)]


def over_servers(ports: Sequence[int]) -> dict[str, Any]:
  """Returns the arguments of `build` for a mesh over servers on these ports."""
  return {"devices": devices(), "target": f"grpc://localhost:{ports[0]}"}


def suite(ports: Sequence[int], **sizes: int) -> harness.Suite:
  """Builds the suite: what is measured and claimed.

  Args:
    ports: ports of the servers.
    **sizes: fields of `Spec`.

  Returns:
    The suite.
  """
  one = Spec("ours", "train", **sizes)
  two = Spec("ours", "train", processors=PROCESSES, **sizes)
  group = Group(f"e{one.experts}/v{one.vocabulary}", (
      Job("one_processor", one),
      Job("two_processors", two),
      Job("two_processes", two, over_servers(ports))))
  return harness.Suite(NAME, (group,), (
      Claim(f"{NAME}/two_processors_to_one/{group.name}", group.name,
            "two_processors", "one_processor"),
      Claim(f"{NAME}/two_processes_to_one/{group.name}", group.name,
            "two_processes", "two_processors", target=TARGET)))


def free_ports(number: int) -> list[int]:
  """Returns ports of this machine that no process listens on."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
    for one in sockets:
      one.bind(("localhost", 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def servers(ports: Sequence[int]) -> Iterator[None]:
  """Starts a server process per port, and kills them at the end.

  Args:
    ports: ports of the servers.

  Yields:
    None, once all servers are ready.
  """
  started = []
  try:
    for task in range(len(ports)):
      started.append(subprocess.Popen(
          [sys.executable, "-m", f"benchmarks.{NAME}", SERVE, str(task),
           json.dumps(list(ports))],
          cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
          env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}))
    for server in started:
      answer = server.stdout.readline().strip()
      if answer != READY:
        raise RuntimeError(
            f"{NAME}: a server must start, with ports={list(ports)}, "
            f"answer={answer!r}. Fix the error that it wrote above.")
    yield
  finally:
    for server in started:
      # A TensorFlow server ends only with its process.
      server.kill()
      server.wait()
      server.stdin.close()
      server.stdout.close()


def serve(task: int, ports: Sequence[int]) -> None:
  """Runs a server until standard input ends.

  Args:
    task: number of the server.
    ports: ports of all servers.
  """
  import tensorflow.compat.v1 as tf
  # Each server gets its share of the cores, as if it had its own machine.
  threads = max(1, (os.cpu_count() or 1) // len(ports))
  config = tf.ConfigProto(
      intra_op_parallelism_threads=threads,
      inter_op_parallelism_threads=threads)
  server = tf.distribute.Server(
      {"worker": [f"localhost:{port}" for port in ports]}, job_name="worker",
      task_index=task, config=config)
  print(READY, flush=True)
  sys.stdin.read()
  del server


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  if arguments[:1] == [SERVE]:
    serve(int(arguments[1]), json.loads(arguments[2]))
    return
  parser = harness.parser(NAME)
  parser.add_argument("--experts", type=int, default=8)
  parser.add_argument("--vocabulary", type=int, default=512)
  harness.add_sizes(parser)
  options = parser.parse_args(arguments)
  ports = free_ports(PROCESSES)

  def measure(
      group: Group, alternations: int, steps: int, tell: Callable[[str], None],
  ) -> dict[str, dict[str, Any]]:
    with servers(ports):
      return harness.measure(group, alternations, steps, tell=tell)

  harness.run(suite(
      ports, experts=options.experts, vocabulary=options.vocabulary,
      batch=options.batch, inputs=options.inputs, targets=options.targets),
      options, measure)


if __name__ == "__main__":
  main(sys.argv[1:])
