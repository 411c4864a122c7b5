import switch_mtf.upstream  # noqa: F401  isort:skip  (before mesh_tensorflow)

import contextlib
import ctypes
import gc
import sys

import gin
import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import ROOT, T5_GIN
from helpers.runs import NOISY, succeed
from tensorflow.python.framework import ops
from tensorflow.python.util import tf_stack

# A run keeps freed memory for its next step (`keep_freed_memory`); many small
# graphs of tests would only pile up. So large blocks get glibc's defaults
# again: mapped, and given back.
LIBC = None
with contextlib.suppress(OSError):
  LIBC = ctypes.CDLL("libc.so.6")
  LIBC.mallopt(-4, 65536)  # M_MMAP_MAX
  LIBC.mallopt(-1, 2**17)  # M_TRIM_THRESHOLD

# TensorFlow notes for every operation where it was made, a tenth of what making
# it takes: here all are made at one place.
NOWHERE = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: NOWHERE


# Files that take long. They come first, so that two processes end together.
LONG = ("test_run_t5", "test_layouts", "test_readme", "test_logit_cache",
        "test_distillation_run", "test_decoding", "test_upstream",
        "test_oracle_routers", "test_parity_gatings", "test_mechanisms",
        "test_evaluating", "test_randomness", "test_own_data", "test_nats",
        "test_own_lines", "test_lines", "test_missing_checkpoints",
        "test_untrainable_data", "test_vocabularies",
        "test_model_api_outcomes")


def pytest_collection_modifyitems(items):
  """Puts the files of `LONG` first; pyproject.toml keeps xdist to it."""
  items.sort(key=lambda item: (
      LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)))


@pytest.fixture
def loops_of_t5():
  """Loops inside the graph, as T5's main has them."""
  tf.disable_control_flow_v2()
  yield
  tf.enable_control_flow_v2()


@pytest.fixture(autouse=True)
def fresh_graph():
  """Gives every test a TensorFlow graph of its own."""
  with tf.Graph().as_default():
    yield


@pytest.fixture(autouse=True, scope="module")
def free_memory(request):
  """Lets go of the graphs and sessions that a file of tests keeps."""
  yield
  helpers = (m for name, m in sys.modules.items() if name.startswith("helpers"))
  for module in (request.module, *helpers):
    for value in list(vars(module).values()):
      if hasattr(value, "cache_clear"):
        value.cache_clear()
  # TensorFlow registers each call of a `tf.custom_gradient` for ever, and the
  # call holds its whole graph.
  gradients = ops.gradient_registry._registry
  for name in [n for n in gradients if n.startswith("CustomGradient-")]:
    del gradients[name]
  gc.collect()
  if LIBC:
    LIBC.malloc_trim(0)


@pytest.fixture
def clean_gin():
  """No bindings before and after; gin finds our files and T5's."""
  gin.clear_config()
  for folder in (ROOT, T5_GIN):
    gin.add_config_file_search_path(str(folder))
  yield
  gin.clear_config()


@pytest.fixture
def new_mesh():
  """Makes a Mesh-TF graph with one mesh."""
  return lambda: mtf.Mesh(mtf.Graph(), "mesh")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """The model_dir of a teacher."""
  model_dir = tmp_path_factory.mktemp("runs") / "teacher"
  succeed(model_dir, "--gin_file=tests/gin/tiny.gin",
          *(f"--gin_param={binding}" for binding in NOISY))
  return model_dir
