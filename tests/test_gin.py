"""gin files: each parses, stands in the right folder, and names what exists."""

import contextlib
import pathlib
import re

import gin
import pytest
import seqio
from helpers.configs import parse
from helpers.graphs import ROOT, T5_GIN

import tasks  # noqa: F401
from benchmarks.gin_files import experiments
from switch_mtf import gin_checks, gin_files

pytestmark = pytest.mark.usefixtures("clean_gin")

FILES = sorted(
    p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/**/*.gin"))
# Phases stand on top of a run, as in train_then.phases or after its experiment.
PHASES = ("perplexity_eval", "perplexity_eval_jointly", "eval_by_source",
          "fill_blanks", "eval", "infer", "score", "export")
# What a user must say, and no file can.
ASKED = ("init_checkpoint", "input_filename", "output_filename",
         "inputs_filename", "targets_filename", "scores_filename",
         "export_path")
EXPERIMENTS = experiments()


def answer():
  """Binds what only a user can."""
  gin.parse_config([f"{name} = 'somewhere'" for name in ASKED])
  with contextlib.suppress(ValueError):  # only where a run distils
    gin.parse_config("distill_from.checkpoint = 'somewhere'")


def test_there_are_files_of_every_kind():
  kinds = {path.split("/")[1] for path in FILES}
  assert kinds == {"models", "layouts", "runs", "experiments"}


@pytest.mark.parametrize("path", FILES)
def test_file_parses(path):
  if pathlib.Path(path).stem in PHASES:
    parse("gin/experiments/demo_switch.gin")
  parse(path)


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_experiment_is_complete(path):
  # finalize() raises if a macro is still %gin.REQUIRED, or unknown.
  parse(path)
  answer()
  gin.finalize()
  assert gin.query_parameter("%train_steps") > 0
  asked = gin_files.unset(path)
  gin_checks.check_run([path], [f"{name} = 'x'" for name in asked],
                      [str(ROOT), str(T5_GIN)])


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_experiment_names_a_task(path):
  parse(path)
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  assert gin.query_parameter("%MIXTURE_NAME") in known


@pytest.mark.parametrize("phase", [
    "eval", "infer", "score", "export", "perplexity_eval"])
def test_phase_completes_a_run(phase):
  parse("gin/experiments/demo_switch.gin")
  parse(f"gin/runs/{phase}.gin")
  answer()
  gin.finalize()
  assert gin.query_parameter("utils.run.mode") != "train"


@pytest.mark.parametrize("path, name", [
    ("gin/runs/infer.gin", "input_filename"),
    ("gin/runs/score.gin", "scores_filename"),
    ("gin/runs/export.gin", "export_path"),
    ("gin/experiments/paper/table5/t5_base.gin", "init_checkpoint")])
def test_what_is_asked_cannot_be_left_out(path, name):
  parse("gin/experiments/demo_switch.gin")
  parse(path)
  assert name in ASKED
  gin.parse_config([f"{other} = 'somewhere'" for other in ASKED
                    if other != name])
  with pytest.raises(ValueError, match=name):
    gin.finalize()


@pytest.mark.parametrize("path", FILES)
def test_scopes_are_entered_and_folders_right(path):
  bindings = gin_files.read([path], [], [str(ROOT), str(T5_GIN)])
  assert bindings or pathlib.Path(path).stem == "t5_base"
  gin_checks.check_scopes(bindings)
  gin_checks.check_folders(bindings)


@pytest.mark.parametrize("path", FILES)
def test_no_file_hides_behind_one_of_t5s(path):
  # gin looks into several folders for the same relative path.
  assert not (T5_GIN / path.removeprefix("gin/")).exists()


@pytest.mark.parametrize("path", FILES)
def test_header_says_what_the_file_is_for(path):
  first, *_ = (ROOT / path).read_text().splitlines()
  assert re.match(r"# .{20,}", first)


def test_gin_folder_is_no_package():
  # It would replace the gin-config library.
  assert not list(ROOT.glob("gin/**/__init__.py"))
