"""A few of the configurations of `fuzz_layers.py`, and whether it works."""

import pytest
from helpers import fuzz_layers
from helpers.fuzz_layers import smallest, table, try_out
from helpers.fuzz_values import Generator, Line, by_itself

from switch_mtf.layers.switch_ffn import SwitchFFN

COUNT = 15


def test_a_few_configurations():
  generator = Generator(1)
  results = fuzz_layers.fuzz([generator.draw() for _ in range(COUNT)])
  assert not results["findings"], table(results)
  # Neither is all legal nor all refused.
  assert 0 < results["ran"] < COUNT
  assert results["ran"] + sum(results["refused"].values()) == COUNT


def test_what_is_drawn_follows_from_the_seed():
  first, again, other = (
      [Generator(seed).draw() for _ in range(3)] for seed in (0, 0, 1))
  assert first == again != other


@pytest.mark.parametrize("line, kind, text", [
    (Line("SwitchFFN.num_experts", "2"), "ran", ""),
    (Line("SwitchFFN.num_experts", "0", "zero"), "refused",
     "SwitchFFN: num_experts must be a whole number, at least 1, with "
     "num_experts=0."),
    (Line("SwitchFFN.num_expert", "2", "misnamed"), "refused",
     "nearest: num_experts")])
def test_outcomes(line, kind, text):
  found = try_out(by_itself("SwitchFFN", line))
  assert found.kind == kind
  assert text in found.message


def test_other_errors_are_findings(monkeypatch):
  def broken(self, context, x):
    raise KeyError("lost")

  monkeypatch.setattr(SwitchFFN, "call", broken)
  lines = by_itself("SwitchFFN", Line("SwitchFFN.min_capacity", "1"))
  found = try_out(lines)
  assert (found.kind, found.label) == ("finding", "KeyError: 'lost'")
  # Nothing but the layer matters.
  assert [str(line) for line in smallest(lines, found.label)] == [
      "step.layer = @SwitchFFN()"]


def test_an_illegal_value_that_runs_is_a_finding():
  found = try_out(by_itself(
      "SwitchFFN", Line("SwitchFFN.num_experts", "2", "pretended")))
  assert found.label == "ran, though illegal: SwitchFFN.num_experts: pretended"
