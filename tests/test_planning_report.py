"""The planner's report."""

import pytest
from helpers.plans import planned

import tasks  # noqa: F401
from switch_mtf.planning import (
  report,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_report_says_what_matters():
  text = report.text(planned())
  for line in (
      "20 steps of 4 sequences", "on 1 cpu core", "parameters",
      "capacity, encoder    5 slots", "communication: none",
      "fits: 4 sequences at once; about"):
    assert line in text
