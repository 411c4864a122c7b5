"""Trains, evaluates, decodes and scores: T5's command with Switch layers.

Takes the flags of `t5_mesh_transformer` and does the same, but registers our
layers and tasks, finds gin files from this folder, and prints readable output:

  python run_t5.py                                   runs the demo
  python run_t5.py --gin_file=gin/experiments/X.gin --model_dir=DIR
  python run_t5.py --explain --gin_file=...          prints the configuration
  python run_t5.py --help                            prints T5's flags

Errors that a user can fix are printed without a traceback. `--verbosity=0` (log
level INFO) shows the traceback and TensorFlow's log.
"""

import importlib
import os
import sys

# TensorFlow's C++ code logs a missing GPU as an error. Its log is hidden unless
# --verbosity is given. The level is assigned, not only set as a default: a
# process that TensorFlow started has inherited a level from it.
if any(flag.startswith("--verbosity") for flag in sys.argv):
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
else:
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from switch_mtf.upstream import fixes  # isort:skip  (before mesh_tensorflow and t5)

import gin
import tensorflow.compat.v1 as tf
from absl import app, flags, logging
from t5.models import mesh_transformer_main

import tasks  # noqa: F401  (registers our tasks)
from switch_mtf import errors, gin_checks, gin_files
from switch_mtf.training import (
  best_checkpoint,
  checkpoint_steps,
  guards,
  hooks,
  model_fn,
  outcomes,
  warm_start,
)

ROOT = os.path.dirname(os.path.abspath(__file__))
DEMO_FLAGS = ["--gin_file=gin/experiments/demo.gin", "--model_dir=runs/demo"]

FLAGS = flags.FLAGS
flags.DEFINE_bool(
    "explain", False,
    "Print the resolved configuration and exit; write nothing.")


def main(argv: list[str]) -> None:
  """Runs T5's main with our checks, extensions and reports.

  Args:
    argv: command line without its flags.
  """
  _set_log_level()
  try:
    _prepare(argv)
    if FLAGS.explain:
      print(_explanation())
      return
    mesh_transformer_main.main(argv)
    if not FLAGS.use_model_api:
      outcomes.require_more(0, "run_t5")
    best_checkpoint.report(FLAGS.model_dir)
    if hooks.StopHook.stopped:
      sys.exit(hooks.INTERRUPTED)
  except KeyboardInterrupt:
    sys.exit(hooks.INTERRUPTED)
  except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
    text = errors.user_message(error)
    if text is None or logging.get_verbosity() >= logging.INFO:
      raise
    sys.exit(text)


def _set_log_level() -> None:
  """Shows only our own lines, unless a log level is given."""
  if FLAGS["verbosity"].present:
    tf.logging.set_verbosity(logging.converter.absl_to_standard(
        FLAGS.verbosity))
    return
  logging.set_verbosity(logging.ERROR)
  # gin logs an error for each folder in which it does not find a file.
  logging.get_absl_handler().addFilter(
      lambda record: "Path not found" not in record.getMessage())


def _prepare(argv: list[str]) -> None:
  """Checks flags and gin files, and installs our extension."""
  if argv[1:]:
    raise ValueError(
        "run_t5: every argument must be a flag, with "
        f"argument={argv[1]}. Write --gin_file=... or --model_dir=....")
  if not FLAGS.gin_file:
    raise ValueError(
        "run_t5: --gin_file must be given when other flags are given, with "
        "gin_file=None. Add --gin_file=gin/experiments/demo.gin or another.")
  if not FLAGS["model_dir"].present:
    raise ValueError(
        "run_t5: --model_dir must be given, with model_dir=None. Add "
        "--model_dir=runs/NAME or another folder, for checkpoints and metrics.")
  folders = [ROOT, gin_files.T5_FOLDER, *FLAGS.gin_location_prefix]
  guards.check_gin_files(FLAGS.gin_file, folders)
  for name in FLAGS.module_import or []:
    gin_checks.check_module(name, "--module_import")
    guards.import_module(name)
  bindings = gin_checks.check_run(
      [*FLAGS.gin_file, *_recorded()], FLAGS.gin_param or [], folders,
      own_modules=bool(FLAGS.module_import))
  if not FLAGS.explain:
    _check_checkpoints(bindings)
    if not FLAGS.tpu:
      guards.check_devices(bindings)
    guards.check_model_dir(FLAGS.model_dir)
  gin.add_config_file_search_path(ROOT)
  if FLAGS.tpu:
    fixes.use_reference_variables_on_tpu()
  model_fn.install()


def _recorded() -> list[str]:
  """Returns the gin files that the model API reads of its own accord."""
  path = os.path.join(FLAGS.model_dir, "operative_config.gin")
  reads = FLAGS.use_model_api and FLAGS.mode not in ("train", "finetune")
  return [path] if reads and os.path.isfile(path) else []


def _check_checkpoints(bindings: list[gin_files.Binding]) -> None:
  """Checks that the checkpoints with which the run begins are there."""
  if FLAGS.use_model_api:
    asked = checkpoint_steps.of_flags(
        FLAGS.checkpoint_mode, FLAGS.checkpoint_steps)
    line = checkpoint_steps.check_model_api(
        FLAGS.mode, FLAGS.model_dir, asked, FLAGS.pretrained_model_dir)
  else:
    warm_start.check_start(bindings, FLAGS.model_dir)
    line = checkpoint_steps.check_start(bindings, FLAGS.model_dir)
  if line:
    print(line, file=sys.stderr)


def _explanation() -> str:
  """Returns the resolved configuration of the run, in words."""
  from switch_mtf.planning import explain, plan  # not needed to start a run
  for name in FLAGS.module_import or []:
    importlib.import_module(name)
  found = plan.plan(FLAGS.gin_file, FLAGS.gin_param or [],
                    device="tpu_v3" if FLAGS.tpu else "cpu")
  started = explain.comparison(found, FLAGS.model_dir)
  return "\n".join(filter(None, (
      started, explain.text(found, FLAGS.model_dir))))


def console_entry_point() -> None:
  """Runs `main` in the way that T5's entry point runs its own main."""
  if len(sys.argv) == 1:
    sys.argv += DEMO_FLAGS
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  fixes.use_resource_variables()  # disable_v2_behavior turns them off
  app.run(main)


if __name__ == "__main__":
  console_entry_point()
