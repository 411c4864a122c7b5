"""Memory and speed of one core of each kind of machine."""

import dataclasses
import os

GB = 10**9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One processor of a mesh.

  Attributes:
    name: name, as given by --device.
    memory: bytes of memory of a core.
    peak_flops: FLOPs per second in 16-bit floats, where a multiply-add counts
      as two; None if unknown, as on CPU.
    process_bytes: bytes that a process takes before it has any tensors.
    overhead: ratio of the memory taken to the memory of the tensors. The rest
      is free memory between tensors, and operations that run in parallel.
    shared: whether the cores of a mesh share `memory` and one process, as the
      processors of one CPU do.
  """

  name: str
  memory: int
  peak_flops: float | None
  process_bytes: int = 0
  overhead: float = 1.0
  shared: bool = False


def _ram() -> int:
  """Returns the bytes of memory of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# From Google's and NVIDIA's data sheets. A TPU v2 or v3 chip has two cores, and
# each has half of the chip's memory and speed; a v4 chip is used as one core.
_DEVICES = (
    Device("tpu_v2", 8 * GIB, 22.5e12),
    Device("tpu_v3", 16 * GIB, 61.5e12),
    Device("tpu_v4", 32 * GIB, 275e12),
    Device("v100", 32 * GIB, 125e12),
    Device("a100", 80 * GB, 312e12),
    Device("h100", 80 * GB, 989e12),
)

# Memory that a training process on one CPU takes in addition to its tensors:
# the libraries, the graph, and the data that the input pipeline has read. Both
# numbers were fitted to runs. results/planning/memory.json has other runs, made
# by `python -m benchmarks.planner`.
CPU_PROCESS_BYTES = 930 * 10**6
CPU_OVERHEAD = 1.3


def names() -> list[str]:
  """Returns the legal values of --device."""
  return ["cpu", *(device.name for device in _DEVICES)]


def device(name: str) -> Device:
  """Returns the device with a given name.

  Args:
    name: one of `names()`.

  Raises:
    ValueError: if no device has that name.
  """
  if name == "cpu":
    return Device("cpu", _ram(), None, CPU_PROCESS_BYTES, CPU_OVERHEAD,
                  shared=True)
  for known in _DEVICES:
    if known.name == name:
      return known
  raise ValueError(
      f"planning: the device must be known, with device={name}. Set --device "
      f"to one of {', '.join(names())}.")
