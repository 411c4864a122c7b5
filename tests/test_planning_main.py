"""The planner's command line."""

import json
import math
import subprocess
import sys

import pytest
from helpers.graphs import ROOT
from helpers.plans import TINY

import tasks  # noqa: F401


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_command_prints_json():
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.planning", f"--gin_file={TINY}",
       "--json"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  found = json.loads(done.stdout)
  assert {"parameters", "active_parameters_per_token", "flops_per_sequence",
          "memory_per_core", "communication_per_step"} <= set(found)
  assert math.isfinite(found["flops_per_sequence"])


def test_command_explains_a_mistake():
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.planning", f"--gin_file={TINY}",
       "--mesh_shape=batch:3"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and "must" in done.stderr
