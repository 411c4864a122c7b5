"""Patches that make mesh_tensorflow, t5 and seqio work with TensorFlow 2.15.

Each patch is one function. Its docstring says what is wrong upstream and when
the patch can be removed. `upstream/__init__.py` sets the order of the patches.
"""

import functools
import importlib.util
import inspect
import sys
import types
import zlib

import tensorflow.compat.v1 as tf

MAX_PYTHON = (3, 12)
TENSORFLOW = "2.15"


def check_versions(
    python: tuple[int, int] = sys.version_info[:2],
    tensorflow: str = tf.__version__,
) -> None:
  """Refuses versions of Python and TensorFlow that cannot work.

  TensorFlow 2.16 removed `tf.estimator`, which T5's trainer is built on, and no
  TensorFlow with `tf.estimator` exists for Python 3.12. Can be removed when T5
  no longer needs the Estimator.

  Args:
    python: major and minor version of Python.
    tensorflow: version of TensorFlow.

  Raises:
    ImportError: if one of the versions cannot work.
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
  """Restores `ops.register_tensor_conversion_function`.

  mesh_tensorflow 0.1.21 (`tpu_variables.py`) calls this function at import, but
  TensorFlow 2.15 moved it to another module. Can be removed when
  mesh_tensorflow imports it from
  `tensorflow.python.framework.tensor_conversion_registry`.
  """
  from tensorflow.python.framework import ops, tensor_conversion_registry
  if not hasattr(ops, "register_tensor_conversion_function"):
    ops.register_tensor_conversion_function = (
        tensor_conversion_registry.register_tensor_conversion_function)


def leave_torch_out() -> None:
  """Lets `t5.models` be imported without torch.

  `t5/models/__init__.py` imports `hf_model`, and with it torch, for one class
  that Mesh-TF never uses. Torch may be missing; where it is installed, its
  import takes as long as all the others. Can be removed when t5 imports
  `hf_model` lazily.
  """
  name = "t5.models.hf_model"

  class HfPyTorchModel:
    """A stand-in that imports torch and makes the real HfPyTorchModel."""

    def __new__(cls, *args, **kwargs):
      if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "t5.models.HfPyTorchModel: torch must be installed, and it is not. "
            "Run: pip install torch, or use t5.models.MtfModel.")
      if sys.modules.get(name) is module:
        del sys.modules[name]
      return importlib.import_module(name).HfPyTorchModel(*args, **kwargs)

  module = types.ModuleType(name)
  module.HfPyTorchModel = HfPyTorchModel
  sys.modules.setdefault(name, module)


def use_resource_variables() -> None:
  """Removes a race from training on CPU and GPU, which makes it deterministic.

  T5 calls `disable_v2_behavior`, which selects reference variables. With these,
  an update may overwrite a weight that the backward pass of the same step has
  yet to read. On TPU, `SimdMeshImpl` expects reference variables, and the
  device mesh orders the accesses: see `use_reference_variables_on_tpu`. Can be
  removed when mesh_tensorflow orders reads before updates on
  `PlacementMeshImpl`.
  """
  tf.enable_resource_variables()


def use_reference_variables_on_tpu() -> None:
  """Undoes `use_resource_variables`; `run_t5.py` calls this for `--tpu`.

  `SimdMeshImpl` casts its master variables to reference tensors. Can be removed
  together with `use_resource_variables`.
  """
  tf.disable_resource_variables()


def decode_to_text() -> None:
  """Makes decoding write and print text on CPU and GPU, as on TPU.

  Off TPU, the graph itself turns ids into strings. In Python these are bytes,
  and files get lines such as "b'...'". Can be removed when `utils.decode`
  handles bytes.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.decode

  @functools.wraps(upstream)
  def decode(*args, **kwargs):
    for text in upstream(*args, **kwargs):
      yield text.decode("utf-8") if isinstance(text, bytes) else text

  utils.decode = decode


def repeat_random_draws() -> None:
  """Makes stateful random operations draw the same numbers in every process.

  `PlacementMeshImpl.random` takes the seed of an operation from Python's
  generator, which nobody seeds, and from `hash` of a text, which is another in
  every process. Sampling in decoding therefore never repeats. With this patch,
  the seed is the number of the draw in its graph, and the slice. Can be removed
  when upstream derives the seed from the graph's.
  """
  from mesh_tensorflow import placement_mesh_impl

  def random(self, shape, tf_fn, kwargs):
    graph = tf.get_default_graph()
    while getattr(graph, "outer_graph", None):  # the body of a loop
      graph = graph.outer_graph
    number = graph.switch_mtf_draws = getattr(graph, "switch_mtf_draws", 0) + 1
    slice_shape = self.slice_shape(shape)

    def draw(processor):
      place = f"{number} {self.slice_begin(shape, processor)}"
      return tf_fn(slice_shape, seed=zlib.crc32(place.encode()), **kwargs)

    return self.slicewise(draw, self.laid_out_pnum())

  placement_mesh_impl.PlacementMeshImpl.random = random


def search_beams_exactly() -> None:
  """Keeps dead beams out of the results of beam search, and takes no shortcut.

  Upstream gives a beam that does not exist yet the log-likelihood -1e7. In
  float32, additions to it are lost, so that its continuations tie, and the end
  of sequence, id 1, is among the first of equals. Divided by the length
  penalty, such a "finished" beam then outranks the empty places, and where no
  beam ends within the limit, the result is an impossible sequence.

  `num_prefilter = 2`, upstream's default, keeps two continuations of each beam
  only, which loses the best result of many inputs. 0, the default here, keeps
  all that can matter; `beam_search.num_prefilter = 2` restores the shortcut.

  Can be removed when upstream tells dead beams from living ones.
  """
  import mesh_tensorflow as mtf
  from mesh_tensorflow import beam_search
  upstream = beam_search.compute_topk_scores_and_seq
  beam_search.INF = 1e30  # no sum of real log-likelihoods comes near

  @functools.wraps(upstream)
  def compute_topk(sequences, scores, scores_to_gather, flags, *args, **kwargs):
    lives = mtf.greater(scores, -1e20)
    return upstream(sequences, scores, scores_to_gather,
                    mtf.logical_and(flags, lives), *args, **kwargs)

  beam_search.compute_topk_scores_and_seq = compute_topk
  search = inspect.unwrap(beam_search.beam_search)
  names = inspect.getfullargspec(search).args
  defaults = list(search.__defaults__)
  defaults[names.index("num_prefilter") - len(names)] = 0
  search.__defaults__ = tuple(defaults)
