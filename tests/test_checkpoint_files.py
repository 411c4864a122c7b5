"""Which checkpoints a folder holds, and which are whole."""

import os

import pytest
import tensorflow.compat.v1 as tf
from helpers.checkpoints import save

from switch_mtf.training import checkpoint_files
from switch_mtf.training.checkpoint_files import (
  require_plain_name,
  require_readable,
)


def test_only_whole_checkpoints_count(tmp_path):
  save(tmp_path, 20, 100, parts=2)
  assert checkpoint_files.steps(str(tmp_path)) == [20, 100]
  (tmp_path / "model.ckpt-20.data-00001-of-00002").unlink()
  (tmp_path / "model.ckpt-300.index").write_text("")
  (tmp_path / "model.ckpt-400.data-00000-of-00001").write_text("")
  (tmp_path / "model.ckpt-500.index.tmp").write_text("")
  (tmp_path / "model.ckpt-600_temp").mkdir()
  assert checkpoint_files.steps(str(tmp_path)) == [100]
  assert checkpoint_files.partial(str(tmp_path)) == [20, 300, 400]
  assert checkpoint_files.steps(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("listed, last", [(None, 400), (20, 20), (300, 400)])
def test_last(listed, last, tmp_path):
  # The file `checkpoint` decides, if what it names is there.
  save(tmp_path, 20, 400, listed=listed)
  assert checkpoint_files.last(str(tmp_path)) == f"{tmp_path}/model.ckpt-{last}"


@pytest.mark.parametrize("folder", ["with space", "trailing/", "a-b_c.d"])
def test_any_name_of_a_folder(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(folder, 7)
  assert checkpoint_files.last(folder) == os.path.join(folder, "model.ckpt-7")
  require_readable(os.path.join(folder, "model.ckpt-7"), "score", "checkpoint")


@pytest.mark.parametrize("text", ["", "model_checkpoint_path: ", "no list"])
def test_a_list_that_is_none(text, tmp_path):
  save(tmp_path, 7).joinpath("checkpoint").write_text(text)
  assert checkpoint_files.listed(str(tmp_path)) is None
  assert checkpoint_files.last(str(tmp_path)) == f"{tmp_path}/model.ckpt-7"


def test_a_copied_folder_has_its_own_checkpoints(tmp_path):
  save(tmp_path / "a", 7, 8)
  for folder in ("b", "c"):
    save(tmp_path / folder, *((7, 9) if folder == "b" else ())).joinpath(
        "checkpoint").write_text(
            f'model_checkpoint_path: "{tmp_path}/a/model.ckpt-7"')
  assert checkpoint_files.last(str(tmp_path / "b")) == (
      f"{tmp_path}/b/model.ckpt-7")
  # A user who has none there means the other.
  assert checkpoint_files.last(str(tmp_path / "c")) == (
      f"{tmp_path}/a/model.ckpt-7")


def test_a_checkpoint_of_any_name_is_readable(tmp_path, monkeypatch):
  save(tmp_path, 7)
  for path in tmp_path.glob("model.ckpt-7.*"):
    path.rename(tmp_path / path.name.replace("model.ckpt-7", "pretrained"))
  require_readable(str(tmp_path / "pretrained"), "run_t5", "init_checkpoint")
  monkeypatch.chdir(tmp_path)
  require_readable("pretrained", "run_t5", "init_checkpoint")


@pytest.mark.parametrize("part, content, said", [
    ("index", b"", "which cannot be read: model.ckpt-7.index is damaged"),
    ("index", b"version https://git-lfs",
     "which cannot be read: model.ckpt-7.index is damaged"),
    ("data-00000-of-00001", b"1", "bytes of data=1, bytes that .* says=12"),
    ("data-00000-of-00001", None, "missing=model.ckpt-7.data-00000-of-00001")])
def test_what_is_not_whole_is_refused(part, content, said, tmp_path):
  path = save(tmp_path, 7) / f"model.ckpt-7.{part}"
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=f"init_checkpoint=.*-7, {said}"):
    require_readable(f"{tmp_path}/model.ckpt-7", "run_t5", "init_checkpoint")


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "a\\b"])
def test_a_name_that_is_a_pattern_is_refused(name, tmp_path):
  # TensorFlow finds no checkpoint in run[1], so that a second start would be a
  # new run, and in run* those of run1, too.
  path = f"{save(tmp_path / name, 7, listed=7)}/model.ckpt-7"
  if name == "run[1]":
    assert tf.train.latest_checkpoint(str(tmp_path / name)) is None
  for refuse in (require_plain_name, require_readable):
    with pytest.raises(ValueError, match="TensorFlow reads as a pattern, with"):
      refuse(*((path, "--model_dir") if refuse is require_plain_name else
               (path, "run_t5", "init_checkpoint")))


def test_a_plain_name_passes():
  for name in ("run (1), {a} new/", "gs://bucket/run[1]", "é-ü~!#'"):
    require_plain_name(name, "--model_dir")


def test_a_folder_without_checkpoints_names_the_nearest(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save("runs/switch", 400)
  save("runs/other", 400)
  os.mkdir("swich_data")
  open("swich_data/notes.txt", "w").close()
  both = "; with checkpoints, nearest: runs/switch, runs/other"
  for model_dir, said in (
      ("runs/swich", f"which does not exist{both}"),
      ("runs/swich/", f"which does not exist{both}"),
      ("swich_data", f"in it (1): notes.txt{both}"),
      ("runs/other/model.ckpt-400.index",
       "which is a file; with checkpoints, nearest: runs/other")):
    assert checkpoint_files.described(model_dir) == said
  os.mkdir("links")
  os.symlink(tmp_path / "runs/switch", "links/switch")
  assert checkpoint_files.nearest("links/swich").endswith(" links/switch")
  assert not os.path.exists("runs/swich")


def test_what_is_around_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save("runs/switch", 0, 400)
  around = checkpoint_files.around
  assert around("runs/switch/model.ckpt-300") == "steps in runs/switch=0, 400"
  assert around("runs/swich") == (
      "folder=runs, in it (1): switch; with checkpoints, nearest: runs/switch")
  os.mkdir("runs/empty")
  assert around("runs/empty/model.ckpt-400").endswith("nearest: runs/switch")
  assert around("runs/swich/model.ckpt-400").startswith(
      "which does not exist; with checkpoints, nearest: runs/switch")
