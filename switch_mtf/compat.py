"""Every change we make to an upstream package, one function each.

Import this module before `mesh_tensorflow`, `t5` or `seqio`: some patches must
stand before those packages are first imported. Importing it applies them all;
importing it again does nothing. Each function says what is wrong upstream and
under which condition it can be deleted.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as tf

MAX_PYTHON = (3, 12)
TENSORFLOW = "2.15"


def check_versions(
    python: tuple[int, int] = sys.version_info[:2],
    tensorflow: str = tf.__version__,
) -> None:
  """Refuses interpreters and TensorFlow versions that cannot work.

  TensorFlow 2.16 removed `tf.estimator`, which T5's trainer is built on, and no
  TensorFlow with `tf.estimator` exists for Python 3.12. Can go when T5 no
  longer needs the Estimator.

  Args:
    python: major and minor version.
    tensorflow: version string.

  Raises:
    ImportError: if either cannot work.
  """
  if not (3, 10) <= python < MAX_PYTHON:
    raise ImportError(
        "switch_mtf: Python must be 3.10 or 3.11, with "
        f"python={python[0]}.{python[1]}. Make the virtual environment with "
        "Python 3.11: python3.11 -m venv.")
  if not tensorflow.startswith(TENSORFLOW + "."):
    raise ImportError(
        f"switch_mtf: TensorFlow must be {TENSORFLOW}.x, the last release with "
        f"tf.estimator, with tensorflow={tensorflow}. Run: pip install -r "
        "requirements.txt")


def restore_tensor_conversion_registry() -> None:
  """Puts back `ops.register_tensor_conversion_function`.

  mesh_tensorflow 0.1.21 (`tpu_variables.py`) calls it at import; TensorFlow 2.15
  moved it to another module. Can go when mesh_tensorflow imports it from
  `tensorflow.python.framework.tensor_conversion_registry`.
  """
  from tensorflow.python.framework import ops, tensor_conversion_registry
  if not hasattr(ops, "register_tensor_conversion_function"):
    ops.register_tensor_conversion_function = (
        tensor_conversion_registry.register_tensor_conversion_function)


def make_torch_optional() -> None:
  """Lets `t5.models` be imported where torch is not installed.

  `t5/models/__init__.py` imports `hf_model`, which needs torch, for one class
  that Mesh-TF never uses. Can go when t5 imports it lazily.
  """
  if importlib.util.find_spec("torch") is not None:
    return

  class HfPyTorchModel:
    """Stands for `t5.models.HfPyTorchModel` where torch is missing."""

    def __init__(self, *unused_args, **unused_kwargs):
      raise ImportError(
          "t5.models.HfPyTorchModel: torch must be installed, and it is not. "
          "Run: pip install torch, or use t5.models.MtfModel.")

  module = types.ModuleType("t5.models.hf_model")
  module.HfPyTorchModel = HfPyTorchModel
  sys.modules.setdefault("t5.models.hf_model", module)


def use_resource_variables() -> None:
  """Makes training on CPU and GPU free of a race, hence deterministic.

  T5 calls `disable_v2_behavior`, which selects reference variables: an update
  may overwrite a weight that the backward pass of the same step has yet to
  read. On TPU (`SimdMeshImpl`) reference variables are expected, and the
  device mesh orders the accesses: see `use_reference_variables_on_tpu`. Can go
  when mesh_tensorflow orders reads before updates on `PlacementMeshImpl`.
  """
  tf.enable_resource_variables()


def use_reference_variables_on_tpu() -> None:
  """Undoes `use_resource_variables`; `run_t5.py` calls it when given `--tpu`.

  `SimdMeshImpl` casts the master variables it is given to reference tensors.
  Can go together with `use_resource_variables`.
  """
  tf.disable_resource_variables()


# Functions (estimator_spec, mode, use_tpu) -> estimator_spec, called in order.
_spec_transforms: list[Callable[[Any, str, bool], Any]] = []
# Functions (mode, use_tpu), called before a graph is built.
_graph_starts: list[Callable[[str, bool], None]] = []


def on_estimator_spec(transform: Callable[[Any, str, bool], Any]) -> None:
  """Registers a function that may change each EstimatorSpec (see below)."""
  if transform not in _spec_transforms:
    _spec_transforms.append(transform)


def on_graph_start(start: Callable[[str, bool], None]) -> None:
  """Registers a function called before each model graph is built."""
  if start not in _graph_starts:
    _graph_starts.append(start)


def open_model_fn() -> None:
  """Opens mesh_tensorflow's `model_fn` to hooks, metrics and a seed.

  `tpu_estimator_model_fn` prints one line a step through `tf.Print`, takes no
  hooks for evaluation or prediction and no random seed, and `utils.run` has a
  seam (`train_model_fn`) for training only. With this patch what was registered
  by `on_graph_start` and `on_estimator_spec` runs around it in every mode, under
  `utils.run` and under `t5.models.MtfModel`. Can go when
  `tpu_estimator_model_fn` takes hooks and metrics itself.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.tpu_estimator_model_fn
  if getattr(upstream, "opened_by_switch_mtf", False):
    return

  def tpu_estimator_model_fn(*args, **kwargs):
    model_fn = upstream(*args, **kwargs)
    use_tpu = bool(kwargs.get("use_tpu"))

    def opened(features, labels, mode, params=None, config=None):
      for start in _graph_starts:
        start(mode, use_tpu)
      spec = model_fn(features, labels, mode, params=params, config=config)
      for transform in _spec_transforms:
        spec = transform(spec, mode, use_tpu)
      return spec

    return opened

  tpu_estimator_model_fn.opened_by_switch_mtf = True
  utils.tpu_estimator_model_fn = tpu_estimator_model_fn


def apply() -> None:
  """Applies every patch, in the order they depend on each other."""
  check_versions()
  restore_tensor_conversion_registry()
  make_torch_optional()
  use_resource_variables()
  open_model_fn()


apply()
