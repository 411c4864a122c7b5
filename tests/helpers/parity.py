"""What tests of parity with mesh_tensorflow's MoE1D have in common."""

import numpy as np
from helpers.graphs import random_weights

TOLERANCE = 1e-5
MODEL, HIDDEN = 6, 8
LOSS_COEF = .3
OTHER = {"train": "eval", "eval": "train"}


def factors(mode, factor):
  """The capacity factor of a mode; that of the other mode is another."""
  return {f"capacity_factor_{mode}": factor,
          f"capacity_factor_{OTHER[mode]}": factor * 2}


def draw(case, batch, length, experts):
  """Weights, tokens and gradients of the outputs; `case` is the seed."""
  rng = np.random.default_rng(len(case))
  x, dy = rng.normal(size=[2, batch, length, MODEL]).astype(np.float32)
  return random_weights(
      rng, model=MODEL, hidden=HIDDEN, experts=experts), x, dy


def renamed(values, gating):
  """The same, with upstream's name of the router's kernel."""
  return {f"{gating}_gating/kernel" if k == "router/kernel" else k: v
          for k, v in values.items()}


def gating(name):
  """Upstream's name in the name of a case: what stands before the comma."""
  return name.split(",")[0]
