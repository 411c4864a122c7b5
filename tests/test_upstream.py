"""Mesh-TensorFlow's own tests, with our patches and as our runs are set up.

Left out: those that need ortools (`auto_mtf`), TensorFlow Addons
(`experimental/data_aug_lib_test.py`) or a TPU
(`experimental/input_reader_test.py`).
"""

import pathlib
import subprocess
import sys
from importlib import metadata
from xml.etree import ElementTree

import mesh_tensorflow
import pytest

UPSTREAM = pathlib.Path(mesh_tensorflow.__file__).parent

# How each file is meant to run stands under its `if __name__ == "__main__"`,
# which pytest does not reach. The variables are ours, whatever the mode. absl
# reads sys.argv, and does not know pytest's flags.
RUN = """
import sys
from switch_mtf.upstream import fixes
import tensorflow.compat.v1 as tf
{mode}
fixes.use_resource_variables()
args, sys.argv = sys.argv[1:], sys.argv[:1]
import pytest
sys.exit(pytest.main(args))
"""

TF2 = ""
GRAPH = "tf.disable_v2_behavior()"
EAGER = "tf.disable_v2_behavior(); tf.enable_eager_execution()"

# How to run it -> file -> how many tests it has.
FILES = {
    EAGER: {"ops_test": 58, "layers_test": 21},
    GRAPH: {"utils_test": 1, "simd_mesh_impl_test": 12, "import_test": 1},
    TF2: {
        "test_utils_test": 3,
        "transformer/adaptive_softmax_test": 7,
        "transformer/dataset_test": 3,
        "transformer/funnel_transformer_test": 6,
        "transformer/learning_rate_schedules_test": 1,
        "transformer/memory_layers_test": 2,
        "transformer/transformer_layers_test": 8,
        "transformer/utils_test": 8,
        "transformer/vocab_embeddings_test": 9,
    },
}

# "file::Class::test" -> why it does not pass. None at present; one that starts
# to pass must be taken off.
FAILING: dict[str, str] = {}

# What tf.test.TestCase has in every class is no test: it skips itself.
NOT_A_TEST = "test_session"


def run_upstream(mode, files, report):
  """Runs upstream's test files; returns "file::Class::test" -> outcome."""
  done = subprocess.run(
      [sys.executable, "-c", RUN.format(mode=mode), "-q", "-n0", "-p",
       "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}",
       f"--rootdir={UPSTREAM}", *(str(UPSTREAM / f"{f}.py") for f in files)],
      capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
  assert report.exists(), done.stdout + done.stderr
  outcomes = {}
  for case in ElementTree.parse(report).iter("testcase"):
    *file, owner = case.get("classname").split(".")
    name = f"{'/'.join(file)}::{owner}::{case.get('name')}"
    problems = [child.tag for child in case
                if child.tag in ("failure", "error", "skipped")]
    outcomes[name] = problems[0] if problems else "passed"
  return outcomes, done.stdout


def test_release():
  # The counts below were taken from this release.
  assert metadata.version("mesh-tensorflow") == "0.1.21"


@pytest.mark.parametrize("mode", FILES, ids=["eager", "graph", "tf2"])
def test_upstream(mode, tmp_path):
  files = FILES[mode]
  outcomes, output = run_upstream(mode, files, tmp_path / "report.xml")
  tests = {name: outcome for name, outcome in outcomes.items()
           if not name.endswith(f"::{NOT_A_TEST}")}
  count = {f: sum(name.startswith(f"{f}::") for name in tests) for f in files}
  assert count == files, output
  expected = {name for name in FAILING if name.split("::")[0] in files}
  found = {name for name, outcome in tests.items() if outcome != "passed"}
  assert found == expected, output
