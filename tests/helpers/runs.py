"""Runs of `run_t5.py` for tests, most of them without starting Python anew."""

import importlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.training import metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Importing T5 takes a third of a short run. It is done once, by a process from
# which most runs are forked.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["run_t5"])


def run_t5(flags, *, forked=True, cwd=ROOT):
  """What the command prints and how it ends, a CompletedProcess."""
  argv = [sys.executable, "run_t5.py", *map(str, flags)]
  if not forked:
    return subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=300)
  with tempfile.TemporaryDirectory() as folder:
    printed = [os.path.join(folder, name) for name in ("stdout", "stderr")]
    child = FORKS.Process(target=_run_in_fork, args=(argv[1:], cwd, printed))
    child.start()
    child.join(300)
    child.kill()
    child.join()
    texts = [pathlib.Path(path).read_text() for path in printed]
  return subprocess.CompletedProcess(argv, child.exitcode, *texts)


def _run_in_fork(argv, cwd, printed):
  for number, path in enumerate(printed, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
  sys.argv = argv
  os.chdir(cwd)
  importlib.import_module("run_t5").console_entry_point()


# On a model_dir.


def run(model_dir, *flags, forked=True):
  return run_t5([f"--model_dir={model_dir}", *flags], forked=forked)


def succeed(model_dir, *flags, forked=True):
  done = run(model_dir, *flags, forked=forked)
  assert done.returncode == 0, done.stdout + done.stderr
  return done


def losses(model_dir):
  return [(r["step"], r["loss"]) for r in metrics.read(str(model_dir), "train")]


def weights(model_dir):
  reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir)))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}


def same_weights(one, other):
  return one.keys() == other.keys() and all(
      np.array_equal(one[name], other[name]) for name in one)


STUDENT = "tests/gin/student.gin"
# In training a teacher like this drops tokens and features, and jitters.
NOISY = ("dropout_rate = 0.3", "SwitchFFN.capacity_factor_train = 0.5",
         "SwitchFFN.capacity_factor_eval = 1.5", "train_then.phases = []")


def student_flags(teacher, *params, student=STUDENT):
  """Flags of a run that distils the model of a model_dir."""
  return [f"--gin_file={student}",
          *(f"--gin_param={binding}" for binding in (
              f"distill_from.checkpoint = '{teacher}'",
              "train_then.phases = []", *params))]


# Scores of checkpoints.


def evaluated(model_dir, values, split="validation"):
  """Writes (step, tag) -> value as T5's evaluation does."""
  writer = tf.summary.FileWriter(str(model_dir / f"{split}_eval"))
  for (step, tag), value in values.items():
    writer.add_summary(tf.Summary(value=[
        tf.Summary.Value(tag=f"eval/{tag}", simple_value=value)]), step)
  writer.close()


SCORES = {(100, "qa/em"): 10.0, (100, "qa/f1"): 20.0,
          (200, "qa/em"): 12.0, (200, "qa/f1"): 30.0,
          (300, "qa/em"): 20.0, (300, "qa/f1"): 21.0,
          (100, "cola/auc"): 5.0, (200, "cola/auc"): 5.0,
          (300, "cola/auc"): 4.0}
