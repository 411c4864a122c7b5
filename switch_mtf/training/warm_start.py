"""Reports the weights that a new run takes from `utils.run.init_checkpoint`.

mesh_tensorflow takes over every variable whose name is in that checkpoint, and
reports this only in its log, which is hidden. A run that resumes from its own
checkpoint takes nothing from `init_checkpoint`.
"""

import re
from collections.abc import Iterable

import tensorflow.compat.v1 as tf

from switch_mtf.errors import counted
from switch_mtf.upstream import seams

MAX_NAMES = 6
SLOT = "_slot_"  # in the name of every optimizer slot


def begins_from_another(run: seams.ModelRun) -> bool:
  """Returns whether a run takes its first weights from `init_checkpoint`."""
  return bool(
      run.mode == tf.estimator.ModeKeys.TRAIN and run.init_checkpoint
      and not (run.model_dir and tf.train.latest_checkpoint(run.model_dir)))


def check(run: seams.ModelRun) -> None:
  """Raises ValueError unless `init_checkpoint` exists."""
  if not tf.io.gfile.exists(f"{run.init_checkpoint}.index"):
    raise ValueError(
        "run_t5: init_checkpoint must be a checkpoint, with init_checkpoint="
        f"{run.init_checkpoint}, which has no .index file. Set "
        "utils.run.init_checkpoint to a path such as DIR/model.ckpt-3000.")


def explain(run: seams.ModelRun, error: Exception) -> ValueError | None:
  """Returns a clearer error for a variable of another shape, or None."""
  found = re.search(
      r"Shape of variable (\S+):0 \((.*)\) doesn't match with shape of tensor "
      r"\S+ \((.*)\) from checkpoint", str(error))
  if not found or not begins_from_another(run):
    return None
  return ValueError(
      "run_t5: init_checkpoint must be of a model with these sizes, with "
      f"{found[1]}={found[2]} in the run, {found[3]} in init_checkpoint="
      f"{run.init_checkpoint}. Give the gin files of that model, or leave the "
      "variable out with tpu_estimator_model_fn.init_variable_filter.")


def lines(
    run: seams.ModelRun, variables: Iterable[tf.Variable]) -> list[str]:
  """Returns lines that say which variables a run takes over.

  Args:
    run: a run that begins from another run's checkpoint.
    variables: variables of the run's graph.

  Returns:
    One line that counts the variables taken over; then, if such weights exist,
    one line for those that only the run has, and one for those of the
    checkpoint that are not taken over.

  Raises:
    ValueError: if no weight is taken over.
  """
  there = {name for name, _ in tf.train.list_variables(run.init_checkpoint)}
  let_in = {name for name in there
            if re.search(run.init_variable_filter or "", name)}
  here = {v.op.name for v in variables}
  taken = here & let_in
  weights = {name for name in here if SLOT not in name and
             name != tf.GraphKeys.GLOBAL_STEP}
  if not taken & weights:
    raise ValueError(
        "run_t5: init_checkpoint must have weights of this model, with "
        f"weights in common=0 of {len(weights)}, init_checkpoint="
        f"{run.init_checkpoint}; "
        f"{counted('only in checkpoint', _weights(there - here), MAX_NAMES)}"
        ". Give the gin files of that model, or set "
        "utils.run.init_checkpoint = None.")
  slots = len(taken) - len(taken & weights)
  step = tf.GraphKeys.GLOBAL_STEP in taken
  found = [
      f"init_checkpoint: {len(taken & weights)} of {len(weights)} weights and "
      f"{slots - step} optimizer slots from {run.init_checkpoint}; the step "
      f"count {'continues' if step else 'starts at 0'}"]
  for what, names in (("new in the run", weights - taken),
                      ("not taken over", there - taken)):
    if shown := _weights(names):
      found.append(f"init_checkpoint: {counted(what, shown, MAX_NAMES)}")
  return found


def _weights(names: Iterable[str]) -> list[str]:
  """Returns the sorted names, without those of optimizer slots."""
  return sorted(name for name in names if SLOT not in name)
