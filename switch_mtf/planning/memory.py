"""Computes the peak memory of one processor during a training step.

The TensorFlow graph of one processor is walked in creation order: forward,
backward, and each update as soon as its gradient exists. A tensor is live from
its creation to its last reader. XLA fuses operations, so that on TPU the result
is an upper bound.
"""

import bisect
import dataclasses
import itertools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.planning.graph import TrainingGraph, operations

# Operations whose output is their input, in the same memory.
ALIASES = frozenset({
    "Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient",
    "PreventGradient", "Enter", "Exit", "Merge", "NextIteration", "Switch"})
# Operations whose output is live before and after the step, or is too small to
# matter.
STANDING = frozenset({"Placeholder", "Const"})
# Operations that TensorFlow computes in place, if an operand is not read again.
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
  """Bytes on one processor at the peak of a step.

  Attributes:
    weights: weights, a teacher's included, in the dtype in which they are kept.
    optimizer_slots: variables of the optimizer.
    gradients: gradients, and other tensors in the shape of weights: updates and
      copies in another dtype.
    activations: activations of tokens, attention and the loss.
    dispatch: slots of experts, and the tensors that route tokens to the slots.
    peak: sum of the above.
    masters: the checkpoint's own copy of weights and optimizer slots, summed
      over all processors. A TPU mesh has the copy on its hosts, a CPU or GPU
      mesh of several processors beside the slices; a single CPU or GPU has none
      (0). Not in `peak`.
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
    """The bytes that are in use between two steps."""
    return self.weights + self.optimizer_slots

  @property
  def of_tokens(self) -> int:
    """The bytes that grow with the tokens of a processor."""
    return self.activations + self.dispatch


def of_training(graph: TrainingGraph) -> Memory:
  """Computes the memory at the peak of a training step.

  Args:
    graph: graph of the step.

  Returns:
    Bytes on one processor, by kind.
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
  """Memory of one tensor, or of several that use the memory in turn.

  Attributes:
    size: bytes.
    kind: one of KINDS.
    made: number of the operation that creates the first tensor.
    read: number of the last operation that reads the last tensor.
  """

  size: int
  kind: str
  made: int
  read: int


def _worst_moment(graph: TrainingGraph) -> dict[str, int]:
  """Returns the bytes of each kind when their sum is largest."""
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
  """Returns the buffers of the tensors of a step."""
  in_order = _in_order(graph)
  source_of, last_read = _sources(in_order)
  kind_of = _kinds(graph)
  buffer_of: dict[str, _Buffer] = {}
  buffers = []
  for number, op in enumerate(in_order):
    for output in op.outputs:
      name = output.name
      if source_of.get(name) != name:  # an alias, or STANDING
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
  """Returns the buffer of an operand that `op` may overwrite, or None."""
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
  """Resolves aliases, and finds the last reader of each tensor.

  Args:
    in_order: operations of a step, in the order in which they run.

  Returns:
    Name of a tensor -> name of the tensor whose memory it uses, None for a
      tensor of STANDING; and name of such a tensor -> number of the last
      operation that reads its memory.
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
  """Returns the operations of a step in the order in which they should run."""
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
    if number_of[op] > last_gradient:  # an update runs as soon as it can
      before = [*(x.op for x in op.inputs), *op.control_inputs]
      number_of[op] = max((number_of[b] for b in before), default=0)
  return sorted(made, key=number_of.get)  # stable


def _kinds(graph: TrainingGraph):
  """Returns a function from a TensorFlow operation to the kind of its output.

  Mesh-TF lowers one operation after the other. Therefore the TensorFlow
  operations created after one result, up to and including the next, belong to
  the next.
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
  """Returns a lowered tensor's slice, without its pending all-reduce if any."""
  if isinstance(laid_out, mtf.LazyAllreduceSum):
    laid_out = laid_out.laid_out_input
  return laid_out.one_slice


def _kind(shape: mtf.Shape) -> str:
  """Returns which of KINDS a tensor of this shape is."""
  names = {name.removesuffix("_unsplit") for name in shape.dimension_names}
  if not names & TOKENS:
    return "gradients"
  if names & {"experts", "choices", "expert_tokens", "expert_capacity"} and (
      "d_ff" not in names):
    return "dispatch"
  return "activations"


def _bytes(tensor: tf.Tensor) -> int:
  """Returns the bytes of a tensor; 0 if its shape is not fully known."""
  elements = tensor.shape.num_elements()
  return (elements or 0) * max(tensor.dtype.size, 1)
