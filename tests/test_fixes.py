"""Upstream's fixes: versions, imports, the kind of variables."""

import subprocess
import sys
import types

import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.framework import ops, tensor_conversion_registry

from switch_mtf.upstream import fixes


@pytest.mark.parametrize("python", [(3, 10), (3, 11)])
@pytest.mark.parametrize("tensorflow", ["2.15.0", "2.15.1"])
def test_versions_that_work(python, tensorflow):
  fixes.check_versions(python, tensorflow)


@pytest.mark.parametrize("python", [(2, 7), (3, 9), (3, 12), (4, 0)])
def test_python_refused(python):
  with pytest.raises(ImportError) as error:
    fixes.check_versions(python, "2.15.1")
  text = str(error.value)
  assert text.startswith("switch_mtf: Python must be 3.10 or 3.11, with ")
  assert f"python={python[0]}.{python[1]}." in text
  assert "python3.11 -m venv" in text


@pytest.mark.parametrize("version", ["1.15.5", "2.1.5", "2.14.1", "2.16.0",
                                     "2.150.0", "3.0.0"])
def test_tensorflow_refused(version):
  with pytest.raises(ImportError) as error:
    fixes.check_versions((3, 11), version)
  text = str(error.value)
  assert text.startswith("switch_mtf: TensorFlow must be 2.15.x, ")
  assert f"with tensorflow={version}." in text
  assert "pip install -r requirements.txt" in text


def test_registry_is_restored(monkeypatch):
  monkeypatch.delattr(ops, "register_tensor_conversion_function")
  fixes.restore_tensor_conversion_registry()
  assert (ops.register_tensor_conversion_function is
          tensor_conversion_registry.register_tensor_conversion_function)


def test_registry_of_an_older_tensorflow_is_left_alone(monkeypatch):
  monkeypatch.setattr(ops, "register_tensor_conversion_function", "its own")
  fixes.restore_tensor_conversion_registry()
  assert ops.register_tensor_conversion_function == "its own"


def test_torch_model_says_what_is_missing(monkeypatch):
  monkeypatch.setattr(fixes.importlib.util, "find_spec", lambda name: None)
  monkeypatch.delitem(sys.modules, "t5.models.hf_model", raising=False)
  fixes.leave_torch_out()
  with pytest.raises(ImportError, match="HfPyTorchModel: torch must be "
                     "installed, .* pip install torch"):
    sys.modules["t5.models.hf_model"].HfPyTorchModel("t5-base", "model", "cpu")


def test_torch_model_is_t5s_where_torch_is_installed(monkeypatch):
  real = types.ModuleType("t5.models.hf_model")
  real.HfPyTorchModel = lambda *args, **kwargs: ("real", args, kwargs)
  monkeypatch.setattr(fixes.importlib.util, "find_spec",
                      lambda name: object())
  monkeypatch.setattr(fixes.importlib, "import_module",
                      {"t5.models.hf_model": real}.__getitem__)
  monkeypatch.delitem(sys.modules, "t5.models.hf_model", raising=False)
  fixes.leave_torch_out()
  stub = sys.modules["t5.models.hf_model"].HfPyTorchModel
  for _ in range(2):
    assert stub("t5-base", device="cpu") == (
        "real", ("t5-base",), {"device": "cpu"})
    # Importing it no longer finds the stub.
    assert "t5.models.hf_model" not in sys.modules


def test_torch_stub_keeps_a_module_already_imported(monkeypatch):
  module = types.ModuleType("t5.models.hf_model")
  monkeypatch.setitem(sys.modules, "t5.models.hf_model", module)
  fixes.leave_torch_out()
  assert sys.modules["t5.models.hf_model"] is module


@pytest.fixture
def variable_kind():
  """Restores the kind of variables this process makes."""
  yield
  fixes.use_resource_variables()


def is_resource(name):
  return tf.get_variable(name, shape=[2]).op.type == "VarHandleOp"


def test_variables_are_resources():
  assert tf.resource_variables_enabled()
  assert is_resource("weight")


def test_reference_variables_on_tpu(variable_kind):
  fixes.use_reference_variables_on_tpu()
  assert not is_resource("on_tpu")
  fixes.use_resource_variables()
  assert is_resource("on_cpu")


def test_disable_v2_behavior_undoes_it():
  # So T5's own main does: whoever calls it must call the patch again.
  code = ("from switch_mtf.upstream import fixes\n"
          "import tensorflow.compat.v1 as tf\n"
          "tf.disable_v2_behavior()\n"
          "print(tf.resource_variables_enabled())\n"
          "fixes.use_resource_variables()\n"
          "print(tf.resource_variables_enabled())\n")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True,
                        text=True, check=True)
  assert done.stdout.split() == ["False", "True"]
