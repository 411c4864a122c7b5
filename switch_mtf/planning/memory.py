"""Bytes that one processor needs at the worst moment of a training step.

The step's TensorFlow graph for one processor is gone through in the order in
which it was made: forward, backward, and each update when its gradient is
there. A tensor is there from the operation that makes it to the last one that
reads it. On TPU XLA joins operations, so that what is found is an upper bound.
"""

import bisect
import dataclasses
import itertools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.planning.graph import TrainingGraph, operations

# Give their input on, as it is.
ALIASES = frozenset({
    "Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient",
    "PreventGradient", "Enter", "Exit", "Merge", "NextIteration", "Switch"})
# There before the step and after it, or too small to matter.
STANDING = frozenset({"Placeholder", "Const"})
# What TensorFlow computes in the memory of an operand that nobody reads again.
IN_PLACE = frozenset({
    "Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Maximum", "Minimum",
    "Neg", "Sqrt", "Rsqrt", "Square", "Exp", "Log", "Relu", "ReluGrad",
    "Softmax", "Tanh", "Sigmoid", "Reciprocal", "SelectV2", "SquaredDifference"
})

# Names of dimensions that grow with the tokens of a batch.
TOKENS = frozenset({
    "batch", "outer_batch", "length", "memory_length", "group", "choices",
    "expert_tokens", "expert_capacity"})
KINDS = ("gradients", "activations", "dispatch")


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one processor at the worst moment of a step.

  Attributes:
    weights: in the dtype in which they are kept; a teacher's too.
    optimizer_slots: what the optimizer keeps.
    gradients: and whatever else has the shape of weights: updates, copies in
      another dtype.
    activations: of tokens; what attention and the loss compute.
    dispatch: slots of experts and what routes to them.
    peak: the sum of these.
    masters: the checkpoint's own copy of weights and slots, of all processors:
      on the hosts of a TPU; beside the slices where a mesh of several is on CPU
      or GPU; 0 for one processor there. Not in `peak`.
  """

  weights: int
  optimizer_slots: int
  gradients: int
  activations: int
  dispatch: int
  peak: int
  masters: int

  @property
  def standing(self) -> int:
    """What is there between two steps."""
    return self.weights + self.optimizer_slots

  @property
  def of_tokens(self) -> int:
    """What grows with the tokens of a processor."""
    return self.activations + self.dispatch


def of_training(graph: TrainingGraph) -> Memory:
  """Finds the worst moment of a step.

  Args:
    graph: of the step.

  Returns:
    What is in memory then.
  """
  weights = slots = masters = 0
  for variable in graph.lowering.graph.all_variables:
    size = variable.slice_dtype.size * graph.mesh_impl.slice_size(
        variable.shape)
    if variable.trainable or variable.name.startswith("teacher/"):
      weights += size
    else:
      slots += size
    masters += variable.size * variable.master_dtype.size
  worst = _worst_moment(graph)
  return Memory(
      weights=weights, optimizer_slots=slots, **worst,
      peak=weights + slots + sum(worst.values()),
      masters=masters if graph.tpu or graph.mesh_impl.size > 1 else 0)


@dataclasses.dataclass
class _Buffer:
  """Memory that one or several tensors are in, one after the other.

  Attributes:
    size: bytes.
    kind: one of KINDS.
    made: number of the operation that makes the first.
    read: number of the last operation that reads the last.
  """

  size: int
  kind: str
  made: int
  read: int


def _worst_moment(graph: TrainingGraph) -> dict[str, int]:
  """Bytes by kind when most is there."""
  events = []
  for buffer in _buffers(graph):
    events += [(buffer.made, buffer.size, buffer.kind),
               (buffer.read + 1, -buffer.size, buffer.kind)]
  events.sort(key=lambda event: event[0])
  now, worst = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
  for _, same_time in itertools.groupby(events, key=lambda event: event[0]):
    for _, size, kind in same_time:
      now[kind] += size
    if sum(now.values()) > sum(worst.values()):
      worst = dict(now)
  return worst


def _buffers(graph: TrainingGraph) -> list[_Buffer]:
  """The memory of the tensors of a step."""
  in_order = _in_order(graph)
  source_of, last_read = _sources(in_order)
  kind_of = _kinds(graph)
  buffer_of: dict[str, _Buffer] = {}
  buffers = []
  for number, op in enumerate(in_order):
    for output in op.outputs:
      name = output.name
      if source_of.get(name) != name:  # an alias, or there anyway
        continue
      size = _bytes(output)
      read = max(last_read.get(name, number), number)
      buffer = _free_operand(op, size, number, source_of, buffer_of)
      if buffer is None:
        buffer = _Buffer(size, kind_of(op), number, read)
        buffers.append(buffer)
      buffer.read = read
      buffer_of[name] = buffer
  return buffers


def _free_operand(
    op: tf.Operation, size: int, number: int, source_of: dict[str, str | None],
    buffer_of: dict[str, _Buffer],
) -> _Buffer | None:
  """The memory of an operand that `op` may write its result to."""
  if op.type not in IN_PLACE:
    return None
  for operand in op.inputs:
    buffer = buffer_of.get(source_of.get(operand.name))
    if buffer is not None and buffer.read == number and buffer.size == size:
      return buffer
  return None


def _sources(
    in_order: list[tf.Operation]
) -> tuple[dict[str, str | None], dict[str, int]]:
  """Where each tensor is, and when that place is read last.

  Args:
    in_order: the operations of a step.

  Returns:
    name of a tensor -> name of the tensor in whose memory it is, None for what
      is there anyway; and name of such a tensor -> number of the operation.
  """
  source_of: dict[str, str | None] = {}
  last_read: dict[str, int] = {}
  for number, op in enumerate(in_order):
    values = [*op.inputs, *(
        output for before in op.control_inputs for output in before.outputs)]
    for value in values:
      source = source_of.get(value.name)
      if source is not None:
        last_read[source] = number
    for output in op.outputs:
      if op.type in STANDING:
        source_of[output.name] = None
      elif op.type in ALIASES and op.inputs:
        source_of[output.name] = source_of.get(op.inputs[0].name)
      else:
        source_of[output.name] = output.name
  return source_of, last_read


def _in_order(graph: TrainingGraph) -> list[tf.Operation]:
  """The operations of a step, in the order in which they are thought to run."""
  needed = set()
  waiting = [graph.train_op]
  while waiting:
    op = waiting.pop()
    if op not in needed:
      needed.add(op)
      waiting += [x.op for x in op.inputs] + list(op.control_inputs)
  made = [op for op in graph.train_op.graph.get_operations() if op in needed]
  number_of = {op: number for number, op in enumerate(made)}
  tensors = graph.lowering.tensors
  last_gradient = max(
      (number_of.get(_lowered(tensors[g]).op, 0)
       for g in graph.gradients), default=len(made))
  for op in made:
    if number_of[op] > last_gradient:  # an update: as soon as it can be
      before = [*(x.op for x in op.inputs), *op.control_inputs]
      number_of[op] = max((number_of[b] for b in before), default=0)
  return sorted(made, key=number_of.get)  # stable


def _kinds(graph: TrainingGraph):
  """A function that tells the kind of what a TensorFlow operation computes.

  Mesh-TF lowers one operation after the other, so whatever was made since the
  result of the one before belongs to the next.
  """
  made = graph.train_op.graph.get_operations()
  number_of = {op: number for number, op in enumerate(made)}
  ends, kinds = [], []
  for op in operations(graph.lowering.graph):
    for output in op.outputs:
      lowered = graph.lowering.tensors.get(output)
      if lowered is None:
        continue
      end = number_of[_lowered(lowered).op]
      if not ends or end > ends[-1]:
        ends.append(end)
        kinds.append(_kind(output.shape))

  def kind_of(op: tf.Operation) -> str:
    place = bisect.bisect_left(ends, number_of[op])
    return kinds[min(place, len(kinds) - 1)]

  return kind_of


def _lowered(laid_out) -> tf.Tensor:
  """What a Mesh-TF tensor was lowered to, before a sum that may never be."""
  if isinstance(laid_out, mtf.LazyAllreduceSum):
    laid_out = laid_out.laid_out_input
  return laid_out.one_slice


def _kind(shape: mtf.Shape) -> str:
  """What a tensor of this shape is."""
  names = {name.removesuffix("_unsplit") for name in shape.dimension_names}
  if not names & TOKENS:
    return "gradients"
  if names & {"experts", "choices", "expert_tokens", "expert_capacity"} and (
      "d_ff" not in names):
    return "dispatch"
  return "activations"


def _bytes(tensor: tf.Tensor) -> int:
  """Size of a tensor; 0 where its shape is not known."""
  elements = tensor.shape.num_elements()
  return (elements or 0) * max(tensor.dtype.size, 1)
