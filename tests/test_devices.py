"""The devices that the planner knows."""

import pytest

import tasks  # noqa: F401
from switch_mtf.planning import (
  devices,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_device_must_be_known():
  with pytest.raises(ValueError, match="device=abacus. Set --device to one of"):
    devices.device("abacus")
