"""Where the time of a training step goes, and what the machine could do.

  python -m benchmarks.profile

Writes results/benchmarks/profile.json: for each number of experts the seconds
of a step, the seconds that its operations took by what they are for, the rate
of its matmuls, and how fast the others read and write; beside that the rates of
one large matmul and of copying memory on the same machine, in TensorFlow and,
where it is installed, in torch.
TensorFlow runs one operation at a time here, so that their seconds add up; two
at a time, as in `train_step`, a step is about a tenth faster.
"""

import argparse
import collections
import importlib.util
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.record import ROOT, Record
from benchmarks.spec import Spec

NAME = "profile"
PATH = os.path.join(ROOT, "results", "benchmarks", f"{NAME}.json")
SQUARE = 2048  # rows and columns of the large matmul
COPIED = 2**26  # entries
REPEATS = 15
# The first that is found in "name kind" of an operation is what it is for.
PARTS = {
    "optimizer": r"adafactor/|^assign|Assign",
    "norm": r"rms_norm",
    "matmul": r"MatMul",
    "attention": r"[Aa]ttention",
    "routing and dispatch": r"SwitchFFN",
    "embedding and loss": r"rows|cross_entropy|one_hot|embedding",
}


def part_of(name: str, kind: str) -> str:
  """What an operation is for, by its name and kind."""
  for part, pattern in PARTS.items():
    if re.search(pattern, kind if part == "matmul" else f"{name} {kind}"):
      return part
  return "other"


def matmul_flops(op) -> int:
  """Multiplications and additions of a matmul of known shape.

  Args:
    op: a tf.Operation.

  Returns:
    Their number, 0 for other operations.
  """
  if "MatMul" not in op.type:
    return 0
  first = op.inputs[0].shape.as_list()
  transposed = op.get_attr(
      "transpose_a" if op.type == "MatMul" else "adj_x")
  return 2 * op.outputs[0].shape.num_elements() * first[
      -2 if transposed else -1]


def moved_bytes(op) -> int:
  """Bytes that an operation reads and writes, if it does so once.

  Args:
    op: a tf.Operation. Of inputs and outputs of unknown shape, and of handles
      of variables, nothing is counted.
  """
  return sum(
      x.shape.num_elements() * x.dtype.size for x in [*op.inputs, *op.outputs]
      if x.shape.is_fully_defined() and (
          x.dtype.is_floating or x.dtype.is_integer or x.dtype.is_bool))


def step(experts: int, vocabulary: int) -> dict[str, Any]:
  """Profiles one training step of our model.

  Args:
    experts: 1 is the dense model.
    vocabulary: its size.

  Returns:
    For the record.
  """
  import gin
  import tensorflow.compat.v1 as tf

  from benchmarks import mesh_model
  gin.clear_config()
  with tf.Graph().as_default() as graph:
    model = mesh_model.build(Spec(
        "ours", "train", experts=experts, vocabulary=vocabulary))
    model.step()
    seconds = median_seconds(model.step)
    trace = tf.RunMetadata()
    model.session.run(model.fetch, options=tf.RunOptions(
        trace_level=tf.RunOptions.FULL_TRACE), run_metadata=trace)
    model.session.close()
  spent, flops = collections.Counter(), 0
  moved, moving = collections.Counter(), collections.Counter()
  operations = {op.name: op for op in graph.get_operations()}
  for device in trace.step_stats.dev_stats:
    for node in device.node_stats:
      kind = node.timeline_label.partition("= ")[2].partition("(")[0]
      part = part_of(node.node_name, kind)
      took = (node.op_end_rel_micros - node.op_start_rel_micros) / 1e6
      spent[part] += took
      op = operations.get(node.node_name)
      if op is None:  # of TensorFlow's own making
        continue
      moved[part] += moved_bytes(op)
      moving[part] += took
      if part == "matmul":
        flops += matmul_flops(op)
  return {"experts": experts, "vocabulary": vocabulary,
          "step_seconds": seconds, "seconds": dict(spent.most_common()),
          "gb_per_second": {
              part: moved[part] / 1e9 / moving[part] for part in moving},
          "matmul_gflop": flops / 1e9,
          "matmul_gflop_per_second": flops / 1e9 / spent["matmul"]}


def median_seconds(run: Callable[[], Any]) -> float:
  """How long it takes."""
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def torch_rates() -> dict[str, float]:
  """`_rates` of torch; to be called before TensorFlow has threads."""
  import torch
  x, y = torch.rand(SQUARE, SQUARE), torch.rand(COPIED)
  out = torch.empty_like(y)
  return _rates(lambda: torch.mm(x, x), lambda: torch.add(y, 1.0, out=out))


def tensorflow_rates() -> dict[str, float]:
  """`_rates` of TensorFlow."""
  import tensorflow.compat.v1 as tf
  with tf.Graph().as_default(), tf.Session() as session:
    x, y = (tf.get_variable(name, shape) for name, shape in (
        ("x", [SQUARE, SQUARE]), ("y", [COPIED])))
    session.run(tf.global_variables_initializer())
    matmul, copy = tf.matmul(x, x).op, (y + 1.0).op
    return _rates(lambda: session.run(matmul), lambda: session.run(copy))


def _rates(matmul: Callable, copy: Callable) -> dict[str, float]:
  """GFLOP/s of a large matmul, GB/s read and written by a copy."""
  for warm_up in (matmul, copy):
    warm_up()
  return {"gflop_per_second": 2e-9 * SQUARE**3 / median_seconds(matmul),
          "gb_per_second": 8e-9 * COPIED / median_seconds(copy)}


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: of the command line.
  """
  parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}")
  parser.add_argument("--experts", type=int, nargs="+", default=[1, 8, 32, 128])
  parser.add_argument("--vocabulary", type=int, default=512)
  parser.add_argument("--output", default=PATH)
  options = parser.parse_args(arguments)
  record = Record(options.output, NAME, {
      "experts": options.experts, "vocabulary": options.vocabulary}, False)
  os.environ["TF_NUM_INTEROP_THREADS"] = "1"
  record.data["rates"] = {}
  if importlib.util.find_spec("torch"):
    record.data["rates"]["torch"] = torch_rates()
  import switch_mtf.compat  # noqa: F401  (TensorFlow as our models have it)
  record.data["rates"]["tensorflow"] = tensorflow_rates()
  print(f"{NAME}/rates {record.data['rates']}", flush=True)
  record.data["steps"] = []
  for experts in options.experts:
    found = step(experts, options.vocabulary)
    record.data["steps"].append(found)
    record.save()
    print(f"{NAME}/e{experts} step={found['step_seconds']:.2f} s, matmul "
          f"{found['matmul_gflop_per_second']:.0f} GFLOP/s", flush=True)
  record.finish([])


if __name__ == "__main__":
  main(sys.argv[1:])
