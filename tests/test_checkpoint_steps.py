"""A run gets the checkpoints that it asks for, or an error."""

import os

import pytest
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils
from t5.models import utils as t5_utils

from switch_mtf.gin_files import Binding, Macro
from switch_mtf.training import checkpoint_steps
from switch_mtf.training.checkpoint_steps import require
from switch_mtf.upstream import seams


def save(folder, *steps, parts=1, names=None):
  """Makes the files of checkpoints; `names`: the step in file `checkpoint`."""
  os.makedirs(folder, exist_ok=True)
  for step in steps:
    (folder / f"model.ckpt-{step}.index").write_text("")
    for part in range(parts):
      name = f"model.ckpt-{step}.data-{part:05}-of-{parts:05}"
      (folder / name).write_text("")
  if names is not None:
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "model.ckpt-{names}"\n'
        f'all_model_checkpoint_paths: "model.ckpt-{names}"\n')
  return folder


def test_only_whole_checkpoints_count(tmp_path):
  save(tmp_path, 20, 100, parts=2)
  assert checkpoint_steps.steps(str(tmp_path)) == [20, 100]
  (tmp_path / "model.ckpt-20.data-00001-of-00002").unlink()
  (tmp_path / "model.ckpt-300.index").write_text("")
  (tmp_path / "model.ckpt-400.data-00000-of-00001").write_text("")
  (tmp_path / "model.ckpt-500.index.tmp").write_text("")
  assert checkpoint_steps.steps(str(tmp_path)) == [100]
  assert checkpoint_steps.steps(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("names, last", [(None, 400), (20, 20), (300, 400)])
def test_last(names, last, tmp_path):
  # The file `checkpoint` decides, if what it names is there.
  save(tmp_path, 20, 400, names=names)
  assert checkpoint_steps.last(str(tmp_path)) == f"{tmp_path}/model.ckpt-{last}"


@pytest.mark.parametrize("asked, steps", [
    (20, [20]), (-1, [400]), ("all", [20, 100, 400]), ([400, 20], [400, 20]),
    ((20,), [20])], ids=str)
def test_what_is_there_is_found(asked, steps, tmp_path):
  save(tmp_path, 20, 100, 400)
  assert require(str(tmp_path), asked) == [
      f"{tmp_path}/model.ckpt-{step}" for step in steps]


@pytest.mark.parametrize("asked", [
    21, 0, -2, [20, 21], [], "last", "20", 20.0, True], ids=str)
def test_what_is_not_there_is_refused(asked, tmp_path):
  save(tmp_path, 20, 100)
  with pytest.raises(ValueError) as error:
    require(str(tmp_path), asked, "infer_checkpoint_step")
  assert f"infer_checkpoint_step={asked!r}" in str(error.value)
  assert "steps there=20, 100" in str(error.value)


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
    checkpoint_steps.check_start(bindings(mode=mode, **values), str(tmp_path))


@pytest.mark.parametrize("mode, values", [
    ("eval", {"eval_checkpoint_step": "all"}), ("eval", {}),
    ("eval", {"eval_checkpoint_step": Macro("set_elsewhere")}),
    ("perplexity_eval", {"eval_checkpoint_step": [20]}),
    ("score_from_strings", {"eval_checkpoint_step": [20]}),
    ("export_infer", {}), ("export", {"export_checkpoint_step": 20})], ids=str)
def test_each_mode_may_ask_for_what_is_there(mode, values, tmp_path):
  save(tmp_path, 20)
  assert checkpoint_steps.check_start(
      bindings(mode=mode, **values), str(tmp_path)) is None


def test_the_binding_to_change_is_that_of_the_macro(tmp_path):
  save(tmp_path, 20)
  with pytest.raises(ValueError, match="Set score_checkpoint_step to"):
    checkpoint_steps.check_start([
        *bindings(mode="score_from_strings",
                  eval_checkpoint_step=Macro("score_checkpoint_step")),
        Binding("", "score_checkpoint_step", 7, "--gin_param", 1)],
        str(tmp_path))


def test_a_follower_may_come_first(tmp_path):
  line = checkpoint_steps.check_start(bindings(mode="eval"), str(tmp_path))
  assert "waiting for the first checkpoint" in line


# Training.


def test_a_new_run_starts(tmp_path):
  assert checkpoint_steps.check_new_training(str(tmp_path / "new")) is None
  assert checkpoint_steps.check_new_training(str(tmp_path)) is None
  assert not (tmp_path / "checkpoint").exists()


def test_a_run_with_its_checkpoint_file_goes_on_from_that(tmp_path):
  save(tmp_path, 20, 400, names=20)  # a user went back
  assert checkpoint_steps.check_new_training(str(tmp_path)) is None
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith("-20")


@pytest.mark.parametrize("names, what", [
    (None, "was missing"), (300, "named another")])
def test_training_goes_on_without_the_checkpoint_file(names, what, tmp_path):
  save(tmp_path, 20, 400, names=names)
  line = checkpoint_steps.check_new_training(str(tmp_path))
  assert "goes on from step 400" in line and line.endswith(what)
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith("-400")
  state = tf.train.get_checkpoint_state(str(tmp_path))
  assert len(state.all_model_checkpoint_paths) == 2  # keep_max counts both


def test_parts_of_a_checkpoint_are_not_overwritten(tmp_path):
  (tmp_path / "model.ckpt-400.data-00000-of-00001").write_text("")
  with pytest.raises(ValueError, match="model.ckpt-400.data-00000-of-00001"):
    checkpoint_steps.check_new_training(str(tmp_path))


# Upstream.


def test_upstream_asks(tmp_path, monkeypatch):
  for module in (utils, t5_utils):
    for name in ("get_checkpoint_iterator", "get_checkpoints_iterator",
                 "get_latest_checkpoint_from_dir"):
      if hasattr(module, name):
        monkeypatch.setattr(module, name, getattr(module, name))
  save(tmp_path, 20, 100)
  seams.find_checkpoints_with(require)
  model_dir = str(tmp_path)
  assert utils.get_checkpoint_iterator(20, model_dir) == [
      f"{model_dir}/model.ckpt-20"]
  assert utils.get_checkpoint_iterator("all", model_dir, skip_until=20) == [
      f"{model_dir}/model.ckpt-100"]
  assert t5_utils.get_checkpoints_iterator("all", model_dir) == [20, 100]
  assert t5_utils.get_latest_checkpoint_from_dir(model_dir) == 100
  for find in (
      utils.get_checkpoint_iterator, t5_utils.get_checkpoints_iterator):
    with pytest.raises(ValueError, match="steps there=20, 100"):
      find(21, model_dir)
  with pytest.raises(ValueError, match="which is empty"):
    os.makedirs(tmp_path / "empty")
    utils.get_checkpoint_iterator(-1, str(tmp_path / "empty"))
  # A run that follows a training run waits for what comes.
  assert next(utils.get_checkpoint_iterator(
      None, str(save(tmp_path / "followed", 5, names=5)))).endswith("-5")
