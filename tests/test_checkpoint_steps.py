"""A run gets the checkpoints that it asks for, or an error."""

import os

import pytest
from helpers.checkpoints import save

from switch_mtf.gin_files import Binding, Macro
from switch_mtf.training import checkpoint_steps
from switch_mtf.training.checkpoint_steps import (
  check_model_api,
  check_new_training,
  check_start,
  require,
)


@pytest.mark.parametrize("asked, steps", [
    (20, [20]), (-1, [400]), ("all", [20, 100, 400]), ([400, 20], [400, 20]),
    ((20,), [20]), ([20, 20, -1, 400], [20, 400])], ids=str)
def test_what_is_there_is_found(asked, steps, tmp_path):
  save(tmp_path, 20, 100, 400)
  assert require(str(tmp_path), asked) == [
      f"{tmp_path}/model.ckpt-{step}" for step in steps]


def test_all_begins_after_step_0(tmp_path):
  save(tmp_path, 0)
  assert require(str(tmp_path), "all") == [f"{tmp_path}/model.ckpt-0"]
  save(tmp_path, 20)
  assert require(str(tmp_path), "all") == [f"{tmp_path}/model.ckpt-20"]


@pytest.mark.parametrize("asked", [
    21, 0, -2, [20, 21], [], "last", "20", 20.0, True], ids=str)
def test_what_is_not_there_is_refused(asked, tmp_path):
  save(tmp_path, 20, 100)
  with pytest.raises(ValueError) as error:
    require(str(tmp_path), asked, "infer_checkpoint_step")
  assert f"infer_checkpoint_step={asked!r}" in str(error.value)
  assert "steps there=20, 100" in str(error.value)
  assert ("without quotation marks" in str(error.value)) == (asked == "20")


def test_a_folder_without_checkpoints_names_the_nearest(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(tmp_path / "runs/switch", 400)
  save(tmp_path / "runs/other", 400)
  save(tmp_path / "swich_data").joinpath("notes.txt").write_text("")
  for model_dir, content, nearest in (
      ("runs/swich", "which does not exist", "runs/switch, runs/other"),
      ("swich_data", "in it (1): notes.txt", "runs/switch, runs/other"),
      ("runs/other/model.ckpt-400.index", "which is a file", "runs/other")):
    with pytest.raises(ValueError) as error:
      require(model_dir, -1)
    assert f"model_dir={model_dir}, {content}" in str(error.value)
    assert f"; with checkpoints, nearest: {nearest}." in str(error.value)
  assert not os.path.exists("runs/swich")


def bindings(**values):
  return [Binding("", f"utils.run.{name}", value, "a.gin", 1)
          for name, value in values.items()]


@pytest.mark.parametrize("mode, values", [
    ("eval", {"eval_checkpoint_step": 7}),
    ("perplexity_eval", {"eval_checkpoint_step": [20, 7]}),
    ("infer", {"eval_checkpoint_step": 123456}),
    ("score_from_strings", {"eval_checkpoint_step": "all"}),
    ("score_from_strings", {}), ("score_from_dataset", {}),
    ("export_infer", {"export_checkpoint_step": "all"}),
    ("export_score", {"export_checkpoint_step": 7})], ids=str)
def test_each_mode_is_checked_at_the_start(mode, values, tmp_path):
  save(tmp_path, 20)
  with pytest.raises(ValueError, match="checkpoint_step"):
    check_start(bindings(mode=mode, **values), str(tmp_path))


@pytest.mark.parametrize("mode, values", [
    ("eval", {"eval_checkpoint_step": "all"}), ("eval", {}),
    ("eval", {"eval_checkpoint_step": Macro("set_elsewhere")}),
    ("perplexity_eval", {"eval_checkpoint_step": [20]}),
    ("score_from_strings", {"eval_checkpoint_step": [20]}),
    ("export_infer", {}), ("export", {"export_checkpoint_step": 20})], ids=str)
def test_each_mode_may_ask_for_what_is_there(mode, values, tmp_path):
  save(tmp_path, 20, listed=20)
  assert check_start(
      bindings(mode=mode, **values), str(tmp_path)) is None


def test_the_binding_to_change_is_that_of_the_macro(tmp_path):
  save(tmp_path, 20)
  with pytest.raises(ValueError, match="Set score_checkpoint_step to"):
    check_start([
        *bindings(mode="score_from_strings",
                  eval_checkpoint_step=Macro("score_checkpoint_step")),
        Binding("", "score_checkpoint_step", 7, "--gin_param", 1)],
        str(tmp_path))


def test_a_follower_may_come_first(tmp_path):
  line = check_start(bindings(mode="eval"), str(tmp_path))
  assert "waiting for the first checkpoint" in line


def test_a_misspelt_folder_is_named_while_it_is_waited_for(tmp_path):
  save(tmp_path / "switch", 20)
  line = check_start(bindings(mode="eval"), str(tmp_path / "swich"))
  assert "which does not exist; with checkpoints, nearest: " in line
  assert line.endswith("switch")
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(ValueError, match="which is a file"):
    check_start(bindings(mode="eval"), str(file))


def test_a_remote_folder_is_left_to_the_run():
  for mode in ("train", "eval", "export_infer"):
    assert check_start(bindings(mode=mode), "gs://bucket/run") is None


def test_step_0_is_a_step(tmp_path):
  save(tmp_path, 20)
  with pytest.raises(ValueError, match="export_checkpoint_step=0, "):
    check_start(bindings(mode="export_infer", export_checkpoint_step=0),
                str(tmp_path))


def test_a_damaged_checkpoint_is_refused(tmp_path):
  save(tmp_path, 20, 40)
  (tmp_path / "model.ckpt-20.data-00000-of-00001").write_bytes(b"12")
  for asked in (20, "all", [40, 20]):
    with pytest.raises(ValueError, match="bytes of data=2, .* says=12"):
      check_start(bindings(mode="eval", eval_checkpoint_step=asked),
                  str(tmp_path))
  assert check_start(bindings(mode="eval", eval_checkpoint_step=40),
                     str(tmp_path)) is None


def test_all_names_what_is_passed_over(tmp_path):
  save(tmp_path, 20, 40)
  (tmp_path / "model.ckpt-40.data-00000-of-00001").unlink()
  line = check_start(bindings(mode="eval", eval_checkpoint_step="all"),
                     str(tmp_path))
  assert "passed over" in line and line.endswith(": model.ckpt-40")
  with pytest.raises(ValueError, match=(
      "must be whole, .*missing=model.ckpt-40.data-00000-of-00001")):
    check_start(bindings(mode="eval", eval_checkpoint_step=-1), str(tmp_path))


def test_the_last_is_named_if_nothing_lists_it(tmp_path):
  save(tmp_path, 20)
  line = check_start(bindings(mode="eval", eval_checkpoint_step=-1),
                     str(tmp_path))
  assert "model.ckpt-20, the last checkpoint there" in line


# T5's model API.


@pytest.mark.parametrize("mode, asked", [
    ("eval", 7), ("predict", [20, 7]), ("score", "all"),
    ("export_predict", [20, 40]), ("export_score", 7), ("finetune", [7]),
    ("finetune", "all")], ids=str)
def test_the_model_api_is_checked(mode, asked, tmp_path):
  save(tmp_path, 20, 40)
  with pytest.raises(ValueError, match="with --checkpoint_steps="):
    check_model_api(mode, str(tmp_path), asked, str(tmp_path))


@pytest.mark.parametrize("mode, asked", [
    ("eval", "all"), ("predict", [20, 40]), ("score", -1), ("score", [20]),
    ("export_predict", -1), ("train", -1)], ids=str)
def test_the_model_api_may_ask_for_what_is_there(mode, asked, tmp_path):
  save(tmp_path, 20, 40, listed=40)
  assert check_model_api(mode, str(tmp_path), asked, "") is None


def test_fine_tuning_needs_a_folder_with_checkpoints(tmp_path):
  save(tmp_path / "a", 20)
  new = str(tmp_path / "new")
  assert check_model_api("finetune", new, -1, str(tmp_path / "a")) is None
  with pytest.raises(ValueError, match=(
      "--pretrained_model_dir must be a folder with checkpoints, with "
      "pretrained_model_dir=.*/b, which does not exist")):
    check_model_api("finetune", new, -1, str(tmp_path / "b"))


def test_the_model_api_needs_a_mode(tmp_path):
  with pytest.raises(ValueError, match="--mode must be given"):
    check_model_api(None, str(tmp_path), -1, "")


@pytest.mark.parametrize("flags, asked", [
    (("latest", []), -1), (("all", []), "all"),
    (("specific", ["0", "400"]), [0, 400]), (("specific", []), [])], ids=str)
def test_what_flags_ask_for(flags, asked):
  assert checkpoint_steps.of_flags(*flags) == asked


@pytest.mark.parametrize("flags, said", [
    (("specific", ["0", "x"]), "whole numbers, with checkpoint_steps=0,x"),
    (("latest", ["400"]), "checkpoint_steps=400, checkpoint_mode=latest")],
    ids=str)
def test_flags_that_ask_for_nothing_are_refused(flags, said):
  with pytest.raises(ValueError, match=said):
    checkpoint_steps.of_flags(*flags)


# Training.


def test_a_new_run_starts(tmp_path):
  assert check_new_training(str(tmp_path / "new")) is None
  assert check_new_training(str(tmp_path)) is None
  # A run that was killed while it saved its first checkpoint.
  (tmp_path / "model.ckpt-0.data-00000-of-00001").write_text("")
  assert check_new_training(str(tmp_path)) is None


def test_a_run_with_its_checkpoint_file_goes_on_from_that(tmp_path):
  save(tmp_path, 20, 400, listed=20)  # a user went back
  assert check_new_training(str(tmp_path)) is None


@pytest.mark.parametrize("listed, what", [
    (None, "is missing"), (300, "model.ckpt-300, which is missing")])
def test_training_goes_on_without_the_checkpoint_file(listed, what, tmp_path):
  save(tmp_path, 20, 400, listed=listed)
  before = sorted(tmp_path.iterdir())
  line = check_new_training(str(tmp_path))
  assert f"training goes on from {tmp_path}/model.ckpt-400" in line
  assert line.endswith(what)
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("listed", [None, 400])
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_parts_of_the_last_checkpoint_are_not_overwritten(
    part, listed, tmp_path):
  save(tmp_path, 20, 400, listed=listed)
  (tmp_path / f"model.ckpt-400.{part}").unlink()
  with pytest.raises(ValueError, match=(
      f"missing=model.ckpt-400.{part}, whole ones=20. .* to take step 20")):
    if listed and part == "index":  # like a checkpoint that is not there
      (tmp_path / "checkpoint").unlink()
    check_new_training(str(tmp_path))


def test_a_list_without_checkpoints_is_no_new_run(tmp_path):
  save(tmp_path, listed=400)
  with pytest.raises(ValueError, match=(
      "missing=model.ckpt-400.index, whole ones=none. .* begin anew")):
    check_new_training(str(tmp_path))


@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt-20-copy"])
def test_weights_without_a_step_are_named(name, tmp_path):
  save(tmp_path, 20)
  for path in tmp_path.glob("model.ckpt-20.*"):
    path.rename(tmp_path / path.name.replace("model.ckpt-20", name))
  with pytest.raises(ValueError, match=f"end with its step.*={name}. Rename"):
    check_new_training(str(tmp_path))
  save(tmp_path, listed=20)  # names a checkpoint, of whatever name
  (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"')
  assert check_new_training(str(tmp_path)) is None
  save(tmp_path, 40, listed=40)
  assert check_new_training(str(tmp_path)) is None


def test_phases_evaluate_what_training_reaches(tmp_path):
  def checked(asked, phases=("gin/runs/perplexity_eval.gin",)):
    return check_start([
        *bindings(mode="train", train_steps=20),
        Binding("", "train_then.phases", phases, "a.gin", 1),
        Binding("", "eval_checkpoint_step", asked, "--gin_param", 1)],
        str(tmp_path / "new"))

  for asked in (20, 7, -1, "all", None, [7, 20]):
    assert checked(asked) is None
  assert checked(21, phases=()) is None
  for asked in (21, [7, 21]):
    with pytest.raises(ValueError, match="must evaluate steps that training"):
      checked(asked)
