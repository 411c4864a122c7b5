"""Compares the memory that the planner predicts with what runs take.

  python -m benchmarks.planner

Each size is planned, then trained for a few steps by `run_t5.py` in its own
process. The measured figure is that process's largest resident size.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.record import ROOT, machine

PATH = os.path.join(ROOT, "results", "planning", "memory.json")
STEPS = "benchmarks/gin/planned.gin"
SWITCH = "gin/models/switch_small_e16.gin"
SMALL = "gin/models/small.gin"
# Name -> model and further bindings.
SIZES = {
    "tiny, 16 experts": ("gin/models/switch_tiny_e16.gin", []),
    "small": (SMALL, []),
    "small, 4 times the batch": (SMALL, ["batch_size = 64"]),
    "small, 16 experts": (SWITCH, []),
    "small, 128 experts": (SWITCH, ["num_experts = 128"]),
}


def flags(model: str, params: Sequence[str]) -> list[str]:
  """Returns the flags for the planner and `run_t5.py`, which take the same."""
  return [f"--gin_file={model}", f"--gin_file={STEPS}",
          *(f"--gin_param={param}" for param in params)]


def planned(model: str, params: Sequence[str]) -> dict[str, Any]:
  """Runs the planner; returns its plan of a size."""
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.planning", "--json",
       *flags(model, params)],
      cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def measured(model: str, params: Sequence[str]) -> int:
  """Runs a size; returns its largest resident size, in bytes."""
  with tempfile.TemporaryDirectory() as folder:
    child = subprocess.Popen(
        [sys.executable, "run_t5.py", f"--model_dir={folder}",
         *flags(model, params)], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
  if status:
    raise RuntimeError(
        f"planner: run_t5.py must succeed, with model={model}, "
        f"status={status}. Run that model by hand to see the error.")
  return usage.ru_maxrss * 1024


def main() -> None:
  """Plans and runs every size, and writes `PATH`."""
  found = {"machine": machine(), "sizes": {}}
  for name, (model, params) in SIZES.items():
    plan = planned(model, params)["memory_per_core"]
    peak = measured(model, params)
    ratio = plan["peak"] / peak
    found["sizes"][name] = {
        "planned": plan, "measured": peak, "ratio": ratio}
    print(f"planner/{name} planned={plan['peak'] / 1e6:.0f} MB "
          f"measured={peak / 1e6:.0f} MB ratio={ratio:.3f}", flush=True)
  os.makedirs(os.path.dirname(PATH), exist_ok=True)
  with open(PATH, "w") as f:
    json.dump(found, f, indent=1)
    f.write("\n")


if __name__ == "__main__":
  main()
