"""Parameters and dropped tokens."""

import numpy as np
import pytest

import tasks  # noqa: F401
from switch_mtf.planning import (
  sizes,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_drops_of_random_routing():
  # 4 tokens, 2 experts, 2 slots: of 16 ways to route them 2 leave 2 tokens out
  # (all to one expert), 8 leave 1: (2 * 2 + 8 * 1) / (16 * 4).
  assert sizes.binomial_overflow(4, 2, 2) == pytest.approx(12 / 64)
  assert sizes.binomial_overflow(8, 1, 6) == 2 / 8
  draws = np.random.default_rng(0).integers(128, size=[400, 1024])
  over = sum(np.maximum(np.bincount(d) - 10, 0).sum() for d in draws)
  assert sizes.binomial_overflow(1024, 128, 10) == pytest.approx(
      over / draws.size, abs=1e-3)
