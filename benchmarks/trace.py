"""Summarises the trace of one step: where its time and memory went.

`MeshSubject.profile` takes the trace. This module does not import TensorFlow.
"""

import collections
import math
import re
from typing import Any

# Part of a step -> pattern. An operation belongs to the first part whose
# pattern is found in its "name kind".
PARTS = {
    "messages": r"RecvTensor| _?(Host)?(Send|Recv)$",
    "logits": r"while/decoder/einsum",
    "chosen experts": r"times_chosen",
    "optimizer": r"adafactor/|^assign|Assign",
    "norm": r"rms_norm",
    "matmul": r"MatMul|Einsum",
    "attention": r"[Aa]ttention",
    "routing and dispatch": r"SwitchFFN|moe_1d",
    "embedding and loss": r"rows|cross_entropy|one_hot|embedding",
}
IN_KIND = ("matmul",)  # parts whose pattern is looked for in the kind alone
# Kinds that read no more of their first input than they write.
READ_A_PART = ("Gather", "GatherV2", "GatherNd", "Slice", "StridedSlice")


def part_of(name: str, kind: str) -> str:
  """Returns the part of a step that an operation belongs to."""
  for part, pattern in PARTS.items():
    if re.search(pattern, kind if part in IN_KIND else f"{name} {kind}"):
      return part
  return "other"


def matmul_flops(op) -> int:
  """Counts the multiplications and additions of a matmul of known shape.

  Args:
    op: a tf.Operation.

  Returns:
    Their number; 0 for other operations.
  """
  if op.type == "Einsum":
    letters = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {letter: size for name, x in zip(letters, op.inputs, strict=True)
             for letter, size in zip(name, x.shape.as_list(), strict=True)}
    return 2 * math.prod(sizes.values()) if len(letters) == 2 else 0
  if "MatMul" not in op.type:
    return 0
  first = op.inputs[0].shape.as_list()
  transposed = op.get_attr(
      "transpose_a" if op.type == "MatMul" else "adj_x")
  return 2 * op.outputs[0].shape.num_elements() * first[
      -2 if transposed else -1]


def moved_bytes(op) -> int:
  """Counts the bytes of an operation that reads and writes everything once.

  Inputs and outputs of unknown shape, and handles of variables, count as 0.

  Args:
    op: a tf.Operation.

  Returns:
    The number of bytes read and written.
  """
  inputs = op.outputs if op.type in READ_A_PART else op.inputs
  return sum(
      x.shape.num_elements() * x.dtype.size for x in [*inputs, *op.outputs]
      if x.shape.is_fully_defined() and (
          x.dtype.is_floating or x.dtype.is_integer or x.dtype.is_bool))


def summary(step_stats, graph) -> dict[str, Any]:
  """Summarises a trace.

  Args:
    step_stats: step_stats of a tf.RunMetadata.
    graph: the tf.Graph that was run.

  Returns:
    Entries of the record. `seconds` by part: operations add up even if they ran
      at the same time. `operations`: their number, without messages.
      `gb_per_second` by part, read and written. `matmul_gflop` and
      `matmul_gflop_per_second` of the part "matmul". `messages`: number of
      messages between processes. `busy_seconds` of each device. `tensors_mb` by
      part, at the peak of the tensors that the step made.
  """
  spent, moved, moving, busy = (collections.Counter() for _ in range(4))
  flops = operations = messages = 0
  known = {op.name: op for op in graph.get_operations()}
  for device, name, kind, node in _nodes(step_stats):
    part = part_of(name, kind)
    took = (node.op_end_rel_micros - node.op_start_rel_micros) / 1e6
    spent[part] += took
    if part == "messages":
      messages += kind == "RecvTensor"
      continue
    operations += 1
    busy[device] += took
    op = known.get(name)
    if op is None:  # added by TensorFlow, not in the graph
      continue
    moved[part] += moved_bytes(op)
    moving[part] += took
    if part == "matmul":
      flops += matmul_flops(op)
  return {
      "seconds": dict(spent.most_common()), "operations": operations,
      "gb_per_second": {part: moved[part] / 1e9 / moving[part]
                        for part in moving if moving[part]},
      "matmul_gflop": flops / 1e9,
      "matmul_gflop_per_second": flops / 1e9 / (spent["matmul"] or math.inf),
      "messages": messages, "busy_seconds": sorted(busy.values()),
      "tensors_mb": _tensors_at_their_most(step_stats)}


def _nodes(step_stats):
  """Yields (device, name, kind, record) of every operation that ran."""
  for device in step_stats.dev_stats:
    for node in device.node_stats:
      kind = node.timeline_label.partition("= ")[2].partition("(")[0]
      if "RecvTensor" in node.node_name:
        kind = "RecvTensor"
      yield device.device, node.node_name, kind, node


def _tensors_at_their_most(step_stats) -> dict[str, float]:
  """Returns MB by part at the peak of the tensors that a step made."""
  changes = sorted(
      ((record.alloc_micros, record.alloc_bytes, part_of(name, kind))
       for _, name, kind, node in _nodes(step_stats)
       for memory in node.memory for record in memory.allocation_records),
      key=lambda change: change[0])
  live, most = collections.Counter(), {}
  total = most_total = 0
  for _, change, part in changes:
    live[part] += change
    total += change
    if total > most_total:
      most_total, most = total, dict(live)
  return {part: size / 1e6 for part, size in sorted(
      most.items(), key=lambda item: -item[1]) if size > 0}
