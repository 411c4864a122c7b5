"""Trains a model and then runs phases, such as an evaluation.

  utils.run.train_model_fn = @train_then
  train_then.phases = ["gin/runs/perplexity_eval.gin"]

A phase is a gin file whose bindings override those of the run's gin files, but
not those of the command line. The phase runs in the same process after the last
step. Its bindings stay in force in later phases.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gin
import mesh_tensorflow.transformer.utils as mtf_utils
import tensorflow.compat.v1 as tf
from absl import flags

from switch_mtf.training import best_checkpoint, metrics
from switch_mtf.training.hooks import INTERRUPTED, StopHook, duration


@gin.configurable
def train_then(
    estimator: Any,
    vocabulary: Any,
    sequence_length: dict[str, int],
    batch_size: int,
    train_dataset_fn: Callable[..., tf.data.Dataset],
    train_steps: int,
    ensemble_inputs: int | None,
    *,
    phases: Sequence[str] = (),
    **kwargs,
) -> None:
  """Starts or resumes mesh_tensorflow's training, then runs the phases.

  Args:
    estimator: see `mesh_tensorflow.transformer.utils.train_model`, like all
      arguments but `phases`.
    vocabulary: passed on.
    sequence_length: passed on.
    batch_size: passed on.
    train_dataset_fn: passed on.
    train_steps: last step of the run.
    ensemble_inputs: passed on.
    phases: gin files of the phases, in the order in which they run.
    **kwargs: passed on.

  Raises:
    SystemExit: with code 130 if training was stopped before the last step.
    ValueError: if the data ended before the last step.
  """
  mtf_utils.train_model(
      estimator, vocabulary, sequence_length, batch_size, train_dataset_fn,
      train_steps, ensemble_inputs, **kwargs)
  step = int(estimator.get_variable_value("global_step"))
  if step < train_steps and not StopHook.stopped:
    raise ValueError(
        "utils.run: the training data must have examples for every step, with "
        f"step={step}, train_steps={train_steps}. Give the task of "
        "MIXTURE_NAME examples in its split, or correct the preprocessors that "
        "leave them out.")
  if step < train_steps:
    print(f"Stopped at step {step:,} of {train_steps:,}.", file=sys.stderr)
    sys.exit(INTERRUPTED)
  for phase in phases:
    run_phase(phase, estimator.model_dir)


def run_phase(path: str, model_dir: str) -> None:
  """Runs `utils.run` again, with the bindings of one more gin file.

  Args:
    path: gin file of the phase, searched for like --gin_file.
    model_dir: folder of the run.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  print(f"{name} ...", file=sys.stderr, flush=True)
  start = time.time()
  with gin.unlock_config():
    gin.parse_config_files_and_bindings(
        [path], flags.FLAGS.gin_param or [], finalize_config=False)
  mtf_utils.run(model_dir=model_dir, **{
      name: flags.FLAGS[name].value
      for name in ("tpu_job_name", "tpu", "gcp_project", "tpu_zone")})
  metrics.report_evaluations(model_dir)
  best_checkpoint.report(model_dir)
  print(f"{name}: done in {duration(time.time() - start)}", file=sys.stderr)
