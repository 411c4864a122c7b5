"""Training, then what follows it; whole runs are in test_run_t5.py."""

import types

import pytest

from switch_mtf.training import phases
from switch_mtf.training.hooks import INTERRUPTED


def train_then(monkeypatch, reached, **options):
  """Trains to a step without training; returns the phases that were run."""
  ran, trained = [], []
  monkeypatch.setattr(
      phases.mtf_utils, "train_model", lambda *args, **kwargs: trained.append(
          (args, kwargs)))
  monkeypatch.setattr(
      phases, "run_phase", lambda path, folder: ran.append((path, folder)))
  estimator = types.SimpleNamespace(
      model_dir="/runs/a", get_variable_value={"global_step": reached}.get)
  phases.train_then(estimator, "vocabulary", {"inputs": 4}, 2, "data", 100,
                    None, **options)
  return ran, trained


def test_phases_follow_in_order(monkeypatch):
  ran, trained = train_then(
      monkeypatch, 100, phases=["a.gin", "b.gin"], seed=3)
  assert ran == [("a.gin", "/runs/a"), ("b.gin", "/runs/a")]
  (args, kwargs), = trained
  assert args[1:] == ("vocabulary", {"inputs": 4}, 2, "data", 100, None)
  assert kwargs == {"seed": 3}


def test_data_that_ends_is_an_error(monkeypatch):
  with pytest.raises(ValueError, match=(
      "utils.run: the training data must have examples for every step, with "
      "step=1, train_steps=100")):
    train_then(monkeypatch, 1, phases=["a.gin"])


def test_no_phase_follows_a_run_that_was_stopped(monkeypatch, capsys):
  monkeypatch.setattr(phases.StopHook, "stopped", True)
  with pytest.raises(SystemExit) as stopped:
    train_then(monkeypatch, 60, phases=["a.gin"])
  assert stopped.value.code == INTERRUPTED
  assert "Stopped at step 60 of 100." in capsys.readouterr().err
