"""Checks whether a run fits its device, and finds similar runs that fit."""

import dataclasses

import mesh_tensorflow as mtf

from switch_mtf.mesh import mesh_axis
from switch_mtf.planning.configuration import Configuration
from switch_mtf.planning.devices import Device
from switch_mtf.planning.memory import Memory

LARGEST_AXIS = 4096  # most processors along one axis of a suggested mesh


@dataclasses.dataclass(frozen=True)
class Advice:
  """Advice on batches and meshes that fit.

  Attributes:
    fits: whether the run fits as it is.
    largest_batch: largest number of sequences that the mesh can compute with at
      the same time, a multiple of the parts that the mesh splits a batch into;
      0 if not even one sequence per part fits. An estimate, but where
      `advice.checked` has planned it.
    meshes: larger meshes on which the run fits; empty if the run fits as it is,
      or if none was found. Estimates too.
    flags: flags with which the run fits, as `advice.checked` has planned.
    planned: number of runs that it planned.
  """

  fits: bool
  largest_batch: int
  meshes: list[str]
  flags: list[str] = dataclasses.field(default_factory=list)
  planned: int = 0


def memory_per_core(memory: Memory, device: Device) -> dict[str, int]:
  """Adds the memory that a process takes in addition to its tensors.

  Args:
    memory: memory of the tensors.
    device: kind of the processor.

  Returns:
    Kind of memory -> bytes; "peak" is the sum of the others.
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
  """Compares the memory that a run needs with the memory of its device.

  Assumes that activations and dispatch grow with the tokens of a processor, and
  weights, optimizer slots and gradients with the slices that it holds.

  Args:
    memory: memory that the run needs.
    configuration: resolved run.
    device: kind of each processor.
    graph: graph with the run's variables.

  Returns:
    The advice.
  """
  mesh = configuration.mesh_shape
  ways = batch_ways(configuration)
  free = room(device, mesh.size) - memory.standing - memory.gradients
  fits = free >= memory.of_tokens
  most = int(free * at_once(configuration) // max(memory.of_tokens, 1))
  return Advice(
      fits=fits, largest_batch=max(most, 0) * ways,
      meshes=[] if fits else _meshes(memory, configuration, device, graph))


def batch_ways(
    configuration: Configuration, mesh: mtf.Shape | None = None) -> int:
  """Returns the number of parts of the batch on a mesh, over all replicas.

  Args:
    configuration: resolved run.
    mesh: mesh in place of the run's own, or None.
  """
  mesh = mesh or configuration.mesh_shape
  ways = 1
  for name in ("outer_batch", "batch"):
    _, size = mesh_axis(mtf.Dimension(name, configuration.batch_size),
                        configuration.layout_rules, mesh)
    ways *= size
  return ways


def at_once(configuration: Configuration) -> float:
  """Returns the sequences of a processor in one microbatch."""
  ways = batch_ways(configuration)
  return configuration.batch_size / ways / configuration.num_microbatches


def room(device: Device, processors: int) -> float:
  """Returns the bytes that the tensors of one processor may take."""
  free = (device.memory - device.process_bytes) / device.overhead
  return free / processors if device.shared else free


def _meshes(
    memory: Memory, configuration: Configuration, device: Device,
    graph: mtf.Graph,
) -> list[str]:
  """Doubles each axis in turn until the run fits; returns those meshes."""
  mesh = configuration.mesh_shape
  found = []
  for axis in mesh.dims or [mtf.Dimension("batch", 1)]:
    size = 2 * axis.size
    while size <= LARGEST_AXIS:
      longer = mtf.Shape([
          mtf.Dimension(axis.name, size) if dim == axis else dim
          for dim in mesh.dims or [axis]])
      needed = _needed(memory, configuration, longer, graph)
      if needed is not None and needed <= room(device, longer.size):
        found.append(written(longer))
        break
      size *= 2
  return found


def _needed(
    memory: Memory, configuration: Configuration, mesh: mtf.Shape,
    graph: mtf.Graph,
) -> float | None:
  """Returns the bytes per processor on another mesh; None if it is illegal."""
  ways = batch_ways(configuration, mesh)
  if configuration.batch_size % ways:
    return None
  before = at_once(configuration)
  # A microbatch has a size per processor, so that more processors need fewer
  # microbatches.
  after = min(before, configuration.batch_size / ways)
  impl = mtf.MeshImpl(mesh, configuration.layout_rules)
  try:
    standing = sum(impl.slice_size(v.shape) * v.slice_dtype.size
                   for v in graph.all_variables)
  except ValueError:  # a mesh axis does not divide a dimension
    return None
  return (standing + memory.gradients * standing / memory.standing
          + memory.of_tokens * after / before)


def written(mesh: mtf.Shape) -> str:
  """Returns a mesh as the text that --mesh_shape takes."""
  return ",".join(f"{dim.name}:{dim.size}" for dim in mesh.dims)
