"""What upstream takes for the checkpoints of a run."""

import types

import gin
import mesh_tensorflow.transformer.utils as utils
import pytest
import tensorflow.compat.v1 as tf
from helpers.checkpoints import save
from t5.models import mtf_model
from t5.models import utils as t5_utils
from tensorflow.python.checkpoint import checkpoint_management

from switch_mtf.training import checkpoint_files
from switch_mtf.training.checkpoint_steps import require
from switch_mtf.training.following import follow
from switch_mtf.upstream import checkpoint_seams

PATCHED = [
    (utils, "get_checkpoint_iterator"), (utils, "infer_model"),
    (utils, "export_model"), (utils, "score_from_strings"),
    (utils, "score_from_dataset"),
    (t5_utils, "get_checkpoints_iterator"),
    (t5_utils, "get_latest_checkpoint_from_dir"),
    (checkpoint_management, "get_checkpoint_state"),
    (mtf_model.MtfModel, "finetune")]


@pytest.fixture(autouse=True)
def restored(monkeypatch, clean_gin):
  """Upstream as it is after a test."""
  for module, name in PATCHED:
    monkeypatch.setattr(module, name, getattr(module, name))


def test_upstream_asks(tmp_path):
  save(tmp_path, 20, 100)
  checkpoint_seams.find_checkpoints_with(require, follow)
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
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="which is empty"):
    utils.get_checkpoint_iterator(-1, str(tmp_path / "empty"))


def test_a_follower_waits_and_obeys_gin(tmp_path):
  for _ in range(2):  # twice changes nothing
    checkpoint_seams.find_checkpoints_with(require, follow)
  save(tmp_path, 0, 5, listed=5)
  gin.parse_config("get_checkpoint_iterator.stop_after = 5")
  assert list(utils.get_checkpoint_iterator(None, str(tmp_path))) == [
      f"{tmp_path}/model.ckpt-5"]
  gin.clear_config()
  gin.parse_config("get_checkpoint_iterator.skip_until = 5")
  with pytest.raises(ValueError, match="skip_until=5, last=.*-5"):
    utils.get_checkpoint_iterator("all", str(tmp_path))


@pytest.mark.parametrize("listed", [None, 300])
def test_tensorflow_goes_on_from_what_is_there(listed, tmp_path):
  save(tmp_path, 20, 400, listed=listed)
  assert tf.train.latest_checkpoint(str(tmp_path)) is None
  checkpoint_seams.go_on_from(checkpoint_files.last)
  last = f"{tmp_path}/model.ckpt-400"
  assert tf.train.latest_checkpoint(str(tmp_path)) == last
  state = checkpoint_management.get_checkpoint_state(str(tmp_path))
  assert list(state.all_model_checkpoint_paths) == [last]


def test_tensorflow_believes_a_list_that_is_right(tmp_path):
  checkpoint_seams.go_on_from(checkpoint_files.last)
  save(tmp_path, 20, 400, listed=20)
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith("-20")
  (tmp_path / "new").mkdir()
  assert tf.train.latest_checkpoint(str(tmp_path / "new")) is None
  assert tf.train.latest_checkpoint(str(tmp_path / "nowhere")) is None


def called(name, seen):
  """Replaces a function of upstream by one that notes its arguments."""
  upstream = getattr(utils, name)

  def note(**kwargs):
    seen.update(kwargs)
    if "checkpoint_paths" in kwargs:
      seen["checkpoint_paths"] = list(kwargs["checkpoint_paths"])

  note.__wrapped__, note.__name__ = upstream, name
  setattr(utils, name, note)


def test_each_result_says_its_step(tmp_path, capsys):
  seen = {}
  for name in ("infer_model", "score_from_strings", "export_model"):
    called(name, seen)
  checkpoint_seams.find_checkpoints_with(require, follow)
  checkpoint_seams.tell_steps()
  save(tmp_path, 0, 20, 400, listed=400)
  common = {"model_dir": str(tmp_path)}
  utils.infer_model(**common, eval_checkpoint_step="all")
  assert [p[-3:] for p in seen["checkpoint_paths"]] == ["-20", "400"]
  assert capsys.readouterr().err == (
      f"infer: step 20 of {tmp_path}\ninfer: step 400 of {tmp_path}\n")
  utils.score_from_strings(**common, eval_checkpoint_step=-1)
  assert seen["eval_checkpoint_step"] == 400
  assert capsys.readouterr().err == f"score: step 400 of {tmp_path}\n"
  for step in ("all", None, [0, 400]):
    with pytest.raises(ValueError, match="score: the result must be of one"):
      utils.score_from_strings(**common, eval_checkpoint_step=step)


@pytest.mark.parametrize("binding, step", [
    (None, 400), ("None", 400), ("-1", 400), ("0", 0), ("[0]", 0)])
def test_an_export_is_of_the_step_asked_for(binding, step, tmp_path, capsys):
  seen = {}
  called("export_model", seen)
  checkpoint_seams.find_checkpoints_with(require, follow)
  checkpoint_seams.tell_steps()
  save(tmp_path, 0, 400, listed=400)
  if binding:
    gin.parse_config(f"run.export_checkpoint_step = {binding}")
  utils.export_model(
      estimator=types.SimpleNamespace(model_dir=str(tmp_path)))
  assert seen["checkpoint_path"] == f"{tmp_path}/model.ckpt-{step}"
  assert f"export: step {step} of {tmp_path}" in capsys.readouterr().err


def test_fine_tuning_takes_the_names_of_t5s_main():
  seen = {}

  def finetune(self, name, finetune_steps, pretrained_checkpoint_step=-1):
    seen.update(steps=finetune_steps, of=pretrained_checkpoint_step)

  mtf_model.MtfModel.finetune = finetune
  checkpoint_seams.finetune_with_flags()
  mtf_model.MtfModel.finetune(None, "task", steps=5, checkpoint_steps=7)
  assert seen == {"steps": 5, "of": 7}
  mtf_model.MtfModel.finetune(None, "task", 6)
  assert seen == {"steps": 6, "of": -1}


def test_an_export_needs_a_folder(tmp_path):
  called("export_model", {})
  checkpoint_seams.find_checkpoints_with(require, follow)
  checkpoint_seams.tell_steps()
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="export_path must be a folder"):
    utils.export_model(estimator=None, export_dir=str(tmp_path / "file"))
