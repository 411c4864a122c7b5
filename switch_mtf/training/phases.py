"""Trains a model and then runs phases, such as an evaluation.

  utils.run.train_model_fn = @train_then
  train_then.phases = ["gin/runs/perplexity_eval.gin"]

A phase is a gin file whose bindings override those of the run's gin files, but
not those of the command line. The phase runs in the same process after the last
step. Its bindings stay in force in later phases.

  train_then.evaluate_every = 500

evaluates during the training, too.
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

from switch_mtf import errors
from switch_mtf.training import best_checkpoint, outcomes, warm_start
from switch_mtf.training.hooks import INTERRUPTED, StopHook, duration
from switch_mtf.upstream import seams


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
    evaluate_every: int | None = None,
    evaluate_with: Sequence[str] = ("gin/runs/perplexity_eval.gin",),
    **kwargs,
) -> None:
  """Starts or resumes mesh_tensorflow's training, then runs the phases.

  Args:
    estimator: see `mesh_tensorflow.transformer.utils.train_model`, like all
      arguments but the last.
    vocabulary: passed on.
    sequence_length: passed on.
    batch_size: passed on.
    train_dataset_fn: passed on.
    train_steps: last step of the run.
    ensemble_inputs: passed on.
    phases: gin files of the phases, in the order in which they run.
    evaluate_every: number of steps between two evaluations during training,
      None for none. Each saves a checkpoint and builds the training graph
      anew, which does not change what is trained.
    evaluate_with: gin files of the evaluations during training, of the
      checkpoint of their step.
    **kwargs: passed on.

  Raises:
    SystemExit: with code 130 if training was stopped before the last step.
    ValueError: if there is nothing to train and no phase, or the data ended
      before the last step.
  """
  if evaluate_every is not None:
    errors.require_whole("train_then", evaluate_every=evaluate_every)
  every = evaluate_every or train_steps
  step = warm_start.first_step(estimator.model_dir)
  if step >= train_steps:
    _tell_nothing_to_train(estimator.model_dir, step, train_steps, phases)
  while step < train_steps:
    end = min(train_steps, (step // every + 1) * every)
    mtf_utils.train_model(
        estimator, vocabulary, sequence_length, batch_size, train_dataset_fn,
        end, ensemble_inputs, **kwargs)
    step = int(estimator.get_variable_value("global_step"))
    _check_end(step, end, train_steps)
    for phase in evaluate_with if evaluate_every else ():
      with seams.same_gin_afterwards():
        run_phase(phase, estimator.model_dir, ["eval_checkpoint_step = -1"])
  for phase in phases:
    run_phase(phase, estimator.model_dir)


def _check_end(step: int, end: int, train_steps: int) -> None:
  """Ends the command unless training has reached the step `end`."""
  if step < end and not StopHook.stopped:
    raise ValueError(
        "utils.run: the training data must have examples for every step, with "
        f"step={step}, train_steps={train_steps}. Give the task of "
        "MIXTURE_NAME examples in its split, or correct the preprocessors that "
        "leave them out.")
  if step < end:
    print(f"Stopped at step {step:,} of {train_steps:,}.", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _tell_nothing_to_train(
    model_dir: str, step: int, train_steps: int, phases: Sequence[str]) -> None:
  """Says that training has been done; raises ValueError if nothing follows."""
  if not phases:
    raise ValueError(
        "train_then: train_steps must be above the step of the last "
        f"checkpoint, with train_steps={train_steps}, last step={step}, "
        f"model_dir={model_dir}, phases=[]. Set train_steps to more steps, "
        "or choose another --model_dir.")
  print(f"{model_dir}: nothing to train, step {step:,} of {train_steps:,} is "
        "done; only the phases run", file=sys.stderr)


def run_phase(path: str, model_dir: str, params: Sequence[str] = ()) -> None:
  """Runs `utils.run` again, with the bindings of one more gin file.

  Args:
    path: gin file of the phase, searched for like --gin_file.
    model_dir: folder of the run.
    params: bindings that override those of the command line.

  Raises:
    ValueError: if the phase evaluates nothing.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  print(f"{name} ...", file=sys.stderr, flush=True)
  start = time.time()
  with gin.unlock_config():
    gin.parse_config_files_and_bindings(
        [path], [*(flags.FLAGS.gin_param or []), *params],
        finalize_config=False)
  before = outcomes.so_far()
  mtf_utils.run(model_dir=model_dir, **{
      name: flags.FLAGS[name].value
      for name in ("tpu_job_name", "tpu", "gcp_project", "tpu_zone")})
  outcomes.require_more(before, name)
  best_checkpoint.report(model_dir)
  print(f"{name}: done in {duration(time.time() - start)}", file=sys.stderr)
