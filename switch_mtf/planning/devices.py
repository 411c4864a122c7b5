"""What one core of each kind of machine has."""

import dataclasses
import os

GB = 10**9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One processor of a mesh.

  Attributes:
    name: as given by --device.
    memory: bytes that a core has, for everything.
    peak_flops: multiply-adds count twice; float32 on CPU, bfloat16 elsewhere;
      None if not known.
    process_bytes: taken before there is any tensor.
    overhead: memory taken over memory of tensors: what is free between them,
      and what is computed at the same time.
    shared: whether the cores of a mesh share that memory and the process, as
      the processors of one CPU do.
  """

  name: str
  memory: int
  peak_flops: float | None
  process_bytes: int = 0
  overhead: float = 1.0
  shared: bool = False


def _ram() -> int:
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Google's and NVIDIA's data sheets. A TPU v2 or v3 chip has two cores, each
# half of its memory and speed; a v4 chip is used as one core.
_DEVICES = (
    Device("tpu_v2", 8 * GIB, 22.5e12),
    Device("tpu_v3", 16 * GIB, 61.5e12),
    Device("tpu_v4", 32 * GIB, 275e12),
    Device("v100", 32 * GIB, 125e12),
    Device("a100", 80 * GB, 312e12),
    Device("h100", 80 * GB, 989e12),
)

# What a training process of one CPU has beside its tensors: the libraries, the
# graph, and what the input pipeline has read. Both numbers were fitted to runs;
# results/planning/memory.json has others, by `python -m benchmarks.planner`.
CPU_PROCESS_BYTES = 930 * 10**6
CPU_OVERHEAD = 1.3


def names() -> list[str]:
  """What --device may be."""
  return ["cpu", *(device.name for device in _DEVICES)]


def device(name: str) -> Device:
  """The device of that name.

  Args:
    name: one of `names()`.

  Raises:
    ValueError: if there is none.
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
