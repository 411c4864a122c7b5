"""Comparisons: which runs go together, and how they end."""

import json
import sys
import types

import pytest
from absl import flags

from switch_mtf.training import compare


@pytest.mark.parametrize("at_once, cores, tpu, gpus, turns", [
    (1, 4, None, [], [["a"], ["b"], ["c"]]),
    (2, 4, None, [], [["a", "b"], ["c"]]),
    (3, 2, None, [], [["a", "b"], ["c"]]),
    (2, 4, "a pod", [], [["a"], ["b"], ["c"]]),
    (2, 4, None, ["a GPU"], [["a"], ["b"], ["c"]]),
])
def test_turns(monkeypatch, at_once, cores, tpu, gpus, turns):
  monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(tpu=tpu))
  monkeypatch.setattr(compare.os, "cpu_count", lambda: cores)
  monkeypatch.setattr(
      compare.tf.config, "list_physical_devices", lambda kind: gpus)
  assert compare._in_turns(["a", "b", "c"], at_once) == turns


def test_at_once_must_be_a_number_of_runs():
  with pytest.raises(ValueError, match="at_once"):
    compare.compare(None, models={}, title="", at_once=0)


def python(code):
  return [sys.executable, "-c", f"import sys; {code}"]


def test_a_run_that_ended_well_is_noted_and_one_that_failed_is_named(
    tmp_path, capsys):
  # The second waits for the first, since a failure would stop it.
  good, bad = (str(tmp_path / name) for name in ("good", "bad"))
  for folder in (good, bad):
    (tmp_path / folder).mkdir()
  fail = python("import time; time.sleep(3); sys.exit(7)")
  with pytest.raises(SystemExit) as end:
    compare._run({good: (python("pass"), "[1/2] good"),
                  bad: (fail, "[2/2] bad")})
  assert end.value.code == 7
  printed = capsys.readouterr().err
  assert "[1/2] good\n[2/2] bad\n" in printed
  assert "bad failed. The same command goes on from here." in printed
  assert json.loads((tmp_path / "good/finished.json").read_text()) == (
      python("pass")[2:])
  assert not (tmp_path / "bad/finished.json").exists()
