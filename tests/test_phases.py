"""Training, then what follows it; whole runs are in test_run_t5.py."""

import types

import pytest

from switch_mtf.training import phases
from switch_mtf.training.hooks import INTERRUPTED


@pytest.fixture(autouse=True)
def nothing_was_stopped(monkeypatch):
  """No signal, whatever another test of this process left."""
  monkeypatch.setattr(phases.StopHook, "stopped", False)


def train_then(monkeypatch, reached, begins=0, **options):
  """Trains to a step without training; returns the phases that were run."""
  ran, trained = [], []
  monkeypatch.setattr(
      phases.mtf_utils, "train_model", lambda *args, **kwargs: trained.append(
          (args, kwargs)))
  monkeypatch.setattr(
      phases, "run_phase", lambda path, folder, params=(): ran.append(
          (path, folder, *params)))
  monkeypatch.setattr(
      phases.warm_start, "first_step", lambda folder: begins)
  reached = iter(reached if isinstance(reached, list) else [reached])
  estimator = types.SimpleNamespace(
      model_dir="/runs/a", get_variable_value=lambda name: next(reached))
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


@pytest.mark.parametrize("begins, ends", [(0, [40, 80, 100]), (40, [80, 100]),
                                          (95, [100]), (79, [80, 100])])
def test_evaluations_during_training(begins, ends, monkeypatch):
  ran, trained = train_then(
      monkeypatch, ends, begins, evaluate_every=40, evaluate_with=["a.gin"],
      phases=["b.gin"])
  assert [args[5] for args, _ in trained] == ends
  assert ran == [("a.gin", "/runs/a", "eval_checkpoint_step = -1")] * len(
      ends) + [("b.gin", "/runs/a")]


def test_no_evaluation_follows_a_leg_that_was_stopped(monkeypatch):
  monkeypatch.setattr(phases.StopHook, "stopped", True)
  with pytest.raises(SystemExit):
    train_then(monkeypatch, [40, 50], evaluate_every=40)


def test_a_finished_run_says_so(monkeypatch, capsys):
  ran, trained = train_then(monkeypatch, 100, 100, phases=["a.gin"])
  assert ran == [("a.gin", "/runs/a")] and not trained
  assert "nothing to train, step 100 of 100 is done" in capsys.readouterr().err
  with pytest.raises(ValueError, match="train_steps=100, last step=100"):
    train_then(monkeypatch, 100, 100)


@pytest.mark.parametrize("value", [0, -1, 2.5, "4"])
def test_evaluate_every_is_a_number_of_steps(value, monkeypatch):
  with pytest.raises(ValueError, match="evaluate_every must be a whole number"):
    train_then(monkeypatch, 100, evaluate_every=value)
