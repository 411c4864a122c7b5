"""What is refused before a run costs time."""

import os
import types

import pytest
import tensorflow.compat.v1 as tf

import tasks  # noqa: F401
from switch_mtf.gin_files import Binding
from switch_mtf.layers import switch_ffn  # noqa: F401
from switch_mtf.training import guards

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_missing_gin_file_names_the_nearest():
  with pytest.raises(ValueError, match="nearest: gin/models/mini.gin") as error:
    guards.check_gin_files(["gin/models/mimi.gin"], [ROOT])
  assert "--gin_file must be an existing file" in str(error.value)
  assert "gin_file=gin/models/mimi.gin" in str(error.value)


def test_gin_file_that_is_a_folder():
  with pytest.raises(ValueError, match="--gin_file must be readable"):
    guards.check_gin_files(["gin/models"], [ROOT])


def test_gin_file_that_is_not_text(tmp_path):
  path = tmp_path / "broken.gin"
  path.write_bytes(b"\xff\xfe\x00x")
  with pytest.raises(ValueError, match="it is not UTF-8 text"):
    guards.check_gin_files([str(path)], [])


def test_existing_gin_file_passes():
  guards.check_gin_files(["gin/models/mini.gin"], [ROOT])


def test_unwritable_model_dir_is_refused_and_leaves_nothing(tmp_path):
  file = tmp_path / "file"
  file.write_text("mine")
  with pytest.raises(ValueError, match="must be a folder that can be written"):
    guards.check_model_dir(str(file / "below"))
  assert file.read_text() == "mine"
  assert os.listdir(tmp_path) == ["file"]


def test_full_model_dir_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*unused_args, **unused_kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(guards.tempfile, "TemporaryFile", full)
  with pytest.raises(ValueError, match="No space left on device"):
    guards.check_model_dir(str(tmp_path / "new"))
  assert os.listdir(tmp_path) == []


def test_room_for_checkpoints(tmp_path, monkeypatch):
  # 1000 float32 = 4 kB a checkpoint; keeping 2 needs 3 for a moment = 12 kB.
  variable = tf.get_variable("v", [1000])
  free = types.SimpleNamespace(free=12_000)
  monkeypatch.setattr(guards.shutil, "disk_usage", lambda _: free)
  guards.check_room(str(tmp_path), [variable], keep=2)
  free.free = 11_999
  with pytest.raises(ValueError, match="keep_checkpoint_max=2") as error:
    guards.check_room(str(tmp_path), [variable], keep=2)
  assert "lower utils.run.keep_checkpoint_max" in str(error.value)


def save(directory, names_and_shapes):
  with tf.Graph().as_default(), tf.Session() as session:
    for name, shape in names_and_shapes.items():
      tf.get_variable(name, shape)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, os.path.join(directory, "model.ckpt"), 7)


DENSE = {"encoder/layer_001/DenseReluDense/wi/kernel": [4, 8]}
SWITCH = {"encoder/layer_001/SwitchFFN/wi/kernel": [2, 4, 8],
          "encoder/layer_001/SwitchFFN/router/kernel": [4, 2]}


@pytest.mark.parametrize("stored, wanted, texts", [
    (DENSE, SWITCH,
     ["missing in checkpoint (2): encoder/layer_001/SwitchFFN/router/kernel",
      "only in checkpoint (1): encoder/layer_001/DenseReluDense/wi/kernel",
      "a dense model's checkpoint, and a Switch model now"]),
    (SWITCH, DENSE, ["a Switch model's checkpoint, and a dense model now"]),
    (SWITCH, {**SWITCH, "encoder/layer_001/SwitchFFN/router/kernel": [4, 3]},
     ["different shapes (1): encoder/layer_001/SwitchFFN/router/kernel is "
      "[4, 2] in the checkpoint and [4, 3] in the model",
      "SwitchFFN.num_experts differs"]),
    ({"shared/embedding": [10, 4]}, {"shared/embedding": [12, 4]},
     ["another vocabulary, or d_model differs"]),
    ({"a": [1]}, {"a": [1], "a_slot_v": [1]}, ["another utils.run.optimizer"]),
])
def test_checkpoint_of_another_model(tmp_path, stored, wanted, texts):
  save(str(tmp_path), stored)
  variables = [tf.get_variable(n, shape) for n, shape in wanted.items()]
  with pytest.raises(ValueError) as error:
    guards.check_checkpoint(str(tmp_path), variables)
  for text in texts:
    assert text in str(error.value)


def test_checkpoint_of_this_model_passes(tmp_path):
  guards.check_checkpoint(str(tmp_path), [])
  save(str(tmp_path), {**SWITCH, "encoder/layer_001/x_slot_v": [1]})
  guards.check_checkpoint(
      str(tmp_path), [tf.get_variable(n, s) for n, s in SWITCH.items()])


# Devices.


def of_mesh(*devices):
  return [Binding("", "utils.run.mesh_devices", list(devices), "a.gin", 1)]


@pytest.mark.parametrize("devices", [
    ["gpu:0"], ["cpu:0", "gpu:0"], ["/device:GPU:0"], ["tpu:0"], ["cpu:7"],
    ["disk"]], ids=str)
def test_a_device_that_is_not_there_is_refused(devices):
  with pytest.raises(ValueError) as error:
    guards.check_devices(of_mesh(*devices))
  assert f"missing={devices[-1]}, there=cpu:0. Correct " in str(error.value)


@pytest.mark.parametrize("devices", [
    ["cpu:0", "cpu:0"], ["", ""], ["/device:CPU:0"], ["CPU"],
    ["/job:worker/task:1/device:GPU:0"], []], ids=str)
def test_devices_that_are_there_or_elsewhere(devices):
  guards.check_devices(of_mesh(*devices))
  guards.check_devices([])


# Modules and folders.


@pytest.mark.parametrize("text, said", {
    "def f(:\n": "error=SyntaxError: invalid syntax.*Correct the module",
    "import not_there\n": "No module named 'not_there', file=.*own_module.py, "
                          "line=1. Correct the module",
    "x = 1\nraise KeyError('a')\n": "error=KeyError: 'a', file=.*, line=2.",
}.items())
def test_a_module_with_a_mistake(text, said, tmp_path, monkeypatch):
  (tmp_path / "own_module.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match=f"module=own_module, {said}" if (
      said.startswith("error")) else said):
    guards.import_module("own_module")


@pytest.mark.parametrize("name", ["not_there_at_all", "json.py"])
def test_a_module_that_is_not_there(name):
  with pytest.raises(ValueError, match="Write its name without .py, and set "
                     "PYTHONPATH to its folder"):
    guards.import_module(name)


def test_a_model_dir_that_needs_a_shell(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"Write --model_dir=\$HOME/runs/a"):
    guards.check_model_dir("~/runs/a")
  assert not list(tmp_path.iterdir())
