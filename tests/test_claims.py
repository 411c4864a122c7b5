"""The paper's claims at small scale: figures and verdicts by hand."""

import json
import re

import numpy as np
import pytest
from helpers.graphs import ROOT

from benchmarks import claims


def test_interval_by_hand():
  # 1, 2, 3: deviation 1, so that half the interval is 2.920 / sqrt(3) = 1.686.
  assert claims.margin(np.array([1.0, 2.0, 3.0])) == pytest.approx(
      1.6859, abs=1e-4)


@pytest.mark.parametrize("values, verdict", [
    ([1.0, 2.0, 3.0], claims.HOLDS), ([-1.0, -2.0, -3.0], claims.FAILS),
    ([0.5, 1.5, 2.5], claims.OPEN), ([5.0], claims.OPEN)])
def test_a_claim_is_judged_by_its_interval(values, verdict):
  # Means of 2 and 1.5 against 1.686; one run says nothing.
  assert claims.judge(np.array(values)) == verdict


@pytest.mark.parametrize("values, verdict", [
    ([0.29, 0.30, 0.31], claims.HOLDS), ([0.1, 0.3, 0.5], claims.OPEN),
    ([0.7, 0.71, 0.72], claims.FAILS), ([0.01, 0.02, 0.03], claims.FAILS)])
def test_a_share_is_judged_by_a_range(values, verdict):
  assert claims.judge(np.array(values), 0.2, 0.4) == verdict


def test_share_of_the_papers_own_figures():
  figures = {model: np.array([value]) for model, value in claims.PAPER.items()}
  assert claims.share(figures, "distilled_init_mix") == pytest.approx(
      0.29, abs=0.005)
  for claim in claims.DISTILLATION[:4]:
    assert claim.figure(figures) > 0


def test_a_teacher_without_a_gain_leaves_nothing_to_tell():
  figures = {"dense": np.array([0.0, 0.0]), "switch_e16": np.array([1.0, -1.0]),
             "distilled_init_mix": np.array([0.3, 0.3])}
  found, = claims.judged(claims.DISTILLATION[-1:], figures, "any")
  assert found["ours"] == [pytest.approx(0.3), None]
  assert (found["mean"], found["verdict"]) == (None, claims.OPEN)


def test_each_claim_is_about_models_of_the_comparisons():
  for path, about in (("distillation", claims.DISTILLATION),
                      ("_finetune_comparison", claims.FINE_TUNING)):
    text = (ROOT / f"gin/experiments/small_scale/{path}.gin").read_text()
    models = re.findall(r'^    "(\w+)": "gin/', text, re.MULTILINE)
    figures = {m: np.array([float(n), n + 1.0]) for n, m in enumerate(models)}
    assert len(list(claims.judged(about, figures, path))) == len(about)


def finished_run(folder, name, values, measure="neg_log_perplexity"):
  """What a run leaves behind, as far as claims read it."""
  return {"validation": [{"step": step, measure: value}
                         for step, value in enumerate(values, 1)],
          "parameters": 5, "choices": f"a = 1\ntrain_steps = {len(values)}",
          "train": []}


def test_everything_is_written(tmp_path, monkeypatch):
  quality = {"dense": -3.0, "switch_e16": -2.0, "distilled": -2.9,
             "distilled_init": -2.8, "distilled_init_mix": -2.7, "init": -3.0}
  runs = {(model, seed): finished_run(
      tmp_path, model, [-9.0, value + 0.01 * seed * len(model)])
      for model, value in quality.items() for seed in range(3)}
  monkeypatch.setattr(
      claims, "read", lambda folder: runs if "distillation" in folder else {})
  found = {claim["claim"]: claim
           for claim in claims.write_all("runs", str(tmp_path))}
  # No claim about the teachers that were not trained.
  assert len(found) == 5
  assert all(claim["verdict"] == claims.HOLDS for claim in list(
      found.values())[:2])
  one = json.loads((tmp_path / "distill/dense_seed1.json").read_text())
  assert one["quality"] == pytest.approx(-2.95)
  assert one["curve"] == [[1, -9.0], [2, pytest.approx(-2.95)]]
  assert (tmp_path / "distill/distillation.png").exists()
  assert "| switch_e16 | -1.900 | -2.000, -1.900, -1.800 | -1.444 |" in (
      tmp_path / "distill/distillation.md").read_text()
  assert json.loads((tmp_path / "claims.json").read_text()) == list(
      found.values())


def test_without_runs_nothing_is_overwritten(tmp_path):
  (tmp_path / "claims.json").write_text("mine")
  assert claims.write_all(str(tmp_path / "none"), str(tmp_path)) == []
  assert (tmp_path / "claims.json").read_text() == "mine"


def test_a_claims_row():
  table = claims.claims_table([{
      "claim": "it helps", "where": "Table 4", "paper": "2 against 1",
      "on": "sentiment", "mean": 1.234, "margin": 0.5, "verdict": "holds"}])
  assert table.splitlines()[-1] == (
      "| it helps | Table 4: 2 against 1 | sentiment | 1.23 ± 0.50 "
      "| holds |")


def test_models_that_lack_a_seed_are_left_out():
  records = {("dense", 0): {"quality": 1.0}, ("dense", 1): {"quality": 1.5},
             ("switch_e16", 0): {"quality": 2.0}}
  found, = claims.figures_of(records, ["switch_e16"]).items()
  assert (found[0], found[1].tolist()) == ("dense", [1.0, 1.5])


def test_what_was_recorded_before_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(claims, "read", lambda folder: {
      ("dense", seed): finished_run("", "", [-3.0]) for seed in range(2)
  } if "distillation" in folder else {})
  claims.write_all("first", str(tmp_path))
  monkeypatch.setattr(claims, "read", lambda folder: {
      ("distilled", seed): finished_run("", "", [-2.5 - 0.01 * seed])
      for seed in range(2)} if "distillation" in folder else {})
  claim, = claims.write_all("second", str(tmp_path))
  assert claim["ours"] == pytest.approx([0.5, 0.49])


def test_runs_of_other_lengths_are_not_compared(tmp_path, monkeypatch):
  def write(model, curve):
    monkeypatch.setattr(claims, "read", lambda folder: {
        (model, 0): finished_run("", "", curve)
    } if "distillation" in folder else {})
    claims.write_all("runs", str(tmp_path))

  write("dense", [-4.0, -3.0])
  with pytest.raises(ValueError, match=(
      "claims: the runs of a comparison must have the same train_steps, with "
      "train_steps = 2 in dense_seed0, train_steps = 1 in init_seed0")):
    write("init", [-2.0])
  assert not (tmp_path / "distill/init_seed0.json").exists()
