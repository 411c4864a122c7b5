"""The explanation of a run before it starts."""

import pytest
from helpers.plans import planned

import tasks  # noqa: F401
from switch_mtf.planning import (
  explain,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_explanation_names_every_loss_and_what_is_written():
  plan = planned("train_then.phases = ['gin/runs/perplexity_eval.gin']")
  text = explain.text(plan, "runs/mine")
  for part in ("mode      train", "public_domain_span_corruption_1k",
               "4 sequences = 192 tokens", "20 steps, FewPassAdafactor",
               "load_balancing_loss 0.02: 2 layers of 0.01",
               "z-loss of the softmax 0.0001", "runs/mine: operative_config",
               "then gin/runs/perplexity_eval.gin", "experts 4 x d_model 16"):
    assert part in text, text
  # Warm-up to 0.02 over 5 of 20 steps, times (15 / 20) squared.
  rate = explain._learning_rates(
      plan.configuration.arguments["learning_rate_schedule"], 20)[0]
  assert f"{.02 * (10 / 20) ** 2:.3g} at 10" in rate
  assert rate.endswith("0 at 20")
  assert explain.comparison(plan, "runs/mine") is None
