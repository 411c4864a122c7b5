"""Whether a run fits its device, and what near it does."""

import dataclasses

import mesh_tensorflow as mtf

from switch_mtf.mesh import mesh_axis
from switch_mtf.planning.configuration import Configuration
from switch_mtf.planning.devices import Device
from switch_mtf.planning.memory import Memory

LARGEST_AXIS = 4096  # processors that are looked at along one axis


@dataclasses.dataclass(frozen=True)
class Advice:
  """What fits.

  Attributes:
    fits: whether the run as it is does.
    largest_batch: sequences of the largest batch that fits the mesh at once, a
      multiple of what the mesh splits it into; 0 if none does.
    meshes: shapes near this one on which the batch fits, if this does not.
  """

  fits: bool
  largest_batch: int
  meshes: list[str]


def memory_per_core(memory: Memory, device: Device) -> dict[str, int]:
  """Bytes by kind, with what a process takes beside its tensors.

  Args:
    memory: of the tensors.
    device: of the processor.

  Returns:
    Kind to bytes; "peak" is the sum of the others.
  """
  kinds = dataclasses.asdict(memory)
  kinds.pop("masters")
  tensors = kinds.pop("peak")
  overhead = int(tensors * (device.overhead - 1.0))
  return {"process": device.process_bytes, **kinds, "overhead": overhead,
          "peak": device.process_bytes + tensors + overhead}


def advise(
    memory: Memory, configuration: Configuration, device: Device,
    graph: mtf.Graph,
) -> Advice:
  """Compares what is needed with what is there.

  Memory of tokens is taken to grow with the tokens of a processor, that of
  weights with the slices that it has.

  Args:
    memory: that the run needs.
    configuration: of the run.
    device: of each processor.
    graph: with the run's variables.

  Returns:
    What fits.
  """
  mesh = configuration.mesh_shape
  ways = _batch_ways(configuration, mesh)
  free = _room(device, mesh.size) - memory.standing - memory.gradients
  fits = free >= memory.of_tokens
  most = int(free * _at_once(configuration) // max(memory.of_tokens, 1))
  return Advice(
      fits=fits, largest_batch=max(most, 0) * ways,
      meshes=[] if fits else _meshes(memory, configuration, device, graph))


def _batch_ways(configuration: Configuration, mesh: mtf.Shape) -> int:
  """Into how many parts a mesh splits the batch, replicas included."""
  ways = 1
  for name in ("outer_batch", "batch"):
    _, size = mesh_axis(mtf.Dimension(name, configuration.batch_size),
                        configuration.layout_rules, mesh)
    ways *= size
  return ways


def _at_once(configuration: Configuration) -> float:
  """Sequences that a processor computes with at the same time."""
  ways = _batch_ways(configuration, configuration.mesh_shape)
  return configuration.batch_size / ways / configuration.num_microbatches


def _room(device: Device, processors: int) -> float:
  """Bytes that the tensors of one processor may take."""
  free = (device.memory - device.process_bytes) / device.overhead
  return free / processors if device.shared else free


def _meshes(
    memory: Memory, configuration: Configuration, device: Device,
    graph: mtf.Graph,
) -> list[str]:
  """For each axis, the shortest longer one with which the run fits."""
  mesh = configuration.mesh_shape
  found = []
  for axis in mesh.dims or [mtf.Dimension("batch", 1)]:
    size = 2 * axis.size
    while size <= LARGEST_AXIS:
      longer = mtf.Shape([
          mtf.Dimension(axis.name, size) if dim == axis else dim
          for dim in mesh.dims or [axis]])
      needed = _needed(memory, configuration, longer, graph)
      if needed is not None and needed <= _room(device, longer.size):
        found.append(written(longer))
        break
      size *= 2
  return found


def _needed(
    memory: Memory, configuration: Configuration, mesh: mtf.Shape,
    graph: mtf.Graph,
) -> float | None:
  """Bytes on a processor of another mesh; None where it does not divide."""
  ways = _batch_ways(configuration, mesh)
  if configuration.batch_size % ways:
    return None
  before = _at_once(configuration)
  # Microbatches have a size for each processor: more of these, fewer of them.
  after = min(before, configuration.batch_size / ways)
  impl = mtf.MeshImpl(mesh, configuration.layout_rules)
  try:
    standing = sum(impl.slice_size(v.shape) * v.slice_dtype.size
                   for v in graph.all_variables)
  except ValueError:  # an axis does not divide a dimension
    return None
  return (standing + memory.gradients * standing / memory.standing
          + memory.of_tokens * after / before)


def written(mesh: mtf.Shape) -> str:
  """As --mesh_shape takes it."""
  return ",".join(f"{dim.name}:{dim.size}" for dim in mesh.dims)
