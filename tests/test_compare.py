"""Comparisons: which runs go together, and how they end."""

import json
import sys
import types

import pytest
from absl import flags
from helpers.checkpoints import save

from switch_mtf.comparison import compare


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
  assert compare._in_turns({"a": [], "b": [], "c": []}, at_once) == turns


def test_a_run_waits_for_what_it_uses(monkeypatch):
  monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(tpu=None))
  monkeypatch.setattr(compare.os, "cpu_count", lambda: 2)
  monkeypatch.setattr(compare.tf.config, "list_physical_devices", lambda _: [])
  needs = {"teacher": [], "student": ["teacher"], "dense": ["ended before"]}
  assert compare._in_turns(needs, 2) == [["teacher", "dense"], ["student"]]


def test_what_a_run_uses_is_of_its_seed():
  assert compare._parts("big/model.ckpt-3", 2) == (
      "", "big_seed2", "model.ckpt-3")
  assert compare._parts("../other/big", 2) == ("../other/", "big_seed2", "")


def test_a_run_gets_what_it_needs(monkeypatch, tmp_path):
  monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(
      gin_file=["c.gin", "layout.gin"], module_import=[], tpu=None,
      gin_param=["compare.at_once = 1", "x = 1"]))
  ran = []
  monkeypatch.setattr(compare, "_run", ran.append)
  monkeypatch.setattr(compare.report, "write", lambda *args: "")
  tmp_path = tmp_path / "this"

  def compared():
    compare.compare(
        types.SimpleNamespace(model_dir=str(tmp_path)), title="", seeds=[2],
        models={"teacher": "t.gin", "student": "s.gin"}, params=["y = 2"],
        from_runs={"student": {"distill_from.checkpoint": "teacher",
                               "z": "../other/big/model.ckpt-3"}})

  other = tmp_path.parent / "other/big_seed2"
  save(other, 2)
  with pytest.raises(ValueError, match=(
      f"must be there, with z={other}/model.ckpt-3, steps in {other}=2. Run")):
    compared()
  assert not ran
  save(other, 3)
  compared()
  (teacher,), (student,) = ran
  assert teacher == str(tmp_path / "teacher_seed2")
  assert student == str(tmp_path / "student_seed2")
  command, announcement = ran[1][student]
  assert announcement == "[2/2] student, seed 2"
  assert command[2:] == [
      f"--model_dir={student}", "--gin_file=s.gin", "--gin_file=layout.gin",
      "--gin_param=x = 1", "--gin_param=y = 2", "--gin_param=seed = 2",
      f"--gin_param=distill_from.checkpoint = '{teacher}'",
      f"--gin_param=z = '{tmp_path.parent}/other/big_seed2/model.ckpt-3'"]


@pytest.mark.parametrize("used", ["student", "nothing", "later/model.ckpt-1"])
def test_what_a_run_uses_must_come_before(used):
  with pytest.raises(ValueError, match=(
      "compare: a model must use only models that come before it, with "
      f"model=student, used={used}, models=")):
    compare.compare(
        None, models=dict.fromkeys(("teacher", "student", "later"), "f"),
        title="", from_runs={"student": {"distill_from.checkpoint": used}})


def test_at_once_must_be_a_number_of_runs():
  with pytest.raises(ValueError, match="at_once"):
    compare.compare(None, models={}, title="", at_once=0)


def python(code):
  return [sys.executable, "-c", f"import sys; {code}"]


def test_a_finished_run_is_of_the_gin_files_as_they_are(tmp_path):
  inner, outer = tmp_path / "inner.gin", tmp_path / "outer.gin"
  inner.write_text("d_ff = 64  # features\nd_model = 16\n")
  outer.write_text(f"include '{inner}'\nd_model = 32\n")
  command = ["python", "run_t5.py", f"--gin_file={outer}", "--gin_param=s = 1"]
  noted = compare._what_runs(command)
  assert noted["bindings"] == {"d_ff": "64", "d_model": "32", "s": "1"}
  (tmp_path / "finished.json").write_text(json.dumps(noted))
  assert compare._is_finished(str(tmp_path), command)
  assert not compare._is_finished(str(tmp_path), [*command, "--gin_param=t=1"])
  (tmp_path / "finished.json").write_text(json.dumps(command[2:]))
  assert not compare._is_finished(str(tmp_path), command)
  (tmp_path / "finished.json").write_text(json.dumps(noted))
  inner.write_text("# Another comment.\nd_ff = 64\nd_model = 17\n")
  assert compare._is_finished(str(tmp_path), command)
  inner.write_text("d_ff = 128\n")
  with pytest.raises(ValueError, match=(
      "compare: the gin files of a finished run must not change, with "
      rf"run={tmp_path}, changed=\['d_ff'\]")):
    compare._is_finished(str(tmp_path), command)


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
  assert "bad failed. The same command resumes from here." in printed
  assert json.loads((tmp_path / "good/finished.json").read_text()) == {
      "command": python("pass")[2:], "bindings": {}}
  assert not (tmp_path / "bad/finished.json").exists()
