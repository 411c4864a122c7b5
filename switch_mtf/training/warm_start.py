"""Reports the weights that a new run takes from `utils.run.init_checkpoint`.

mesh_tensorflow takes over every variable whose name is in that checkpoint, and
reports this only in its log, which is hidden. A run that resumes from its own
checkpoint takes nothing from `init_checkpoint`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import gin
import tensorflow.compat.v1 as tf

from switch_mtf.errors import counted
from switch_mtf.gin_files import Binding, Macro, Reference, setting
from switch_mtf.training import checkpoint_files
from switch_mtf.upstream import seams

MAX_NAMES = 6
SLOT = "_slot_"  # in the name of every optimizer slot


def begins_from_another(run: seams.ModelRun) -> bool:
  """Returns whether a run takes its first weights from `init_checkpoint`."""
  return bool(
      run.mode == tf.estimator.ModeKeys.TRAIN and run.init_checkpoint
      and not (run.model_dir and checkpoint_files.last(run.model_dir)))


def check_start(bindings: Sequence[Binding], model_dir: str) -> None:
  """Checks where training takes its first weights, before anything is made.

  Args:
    bindings: all bindings of the run.
    model_dir: folder of the run; one with checkpoints goes on from these.

  Raises:
    ValueError: if `init_checkpoint` or the teacher's checkpoint is not there,
      or the run would not begin at its step and go on to a later one.
  """
  if setting(bindings, "run.mode", "train")[0] != "train":
    return
  if (setting(bindings, "run.model_type")[0] == "bi_student_teacher"
      or setting(bindings, "fill_logit_cache.find_teacher")[0]):
    _check_teacher(*setting(bindings, "distill_from.checkpoint"))
  path, name = setting(bindings, "run.init_checkpoint")
  if _is_local(path) and not ("://" not in model_dir
                              and checkpoint_files.last(model_dir)):
    check(path, name)
    _check_steps(bindings, path)


def first_step(model_dir: str) -> int:
  """Returns the step from which a training run counts on.

  That is the step of its last checkpoint or, in a new run, that of
  `utils.run.init_checkpoint`, if the variable is taken over.

  Args:
    model_dir: folder of the run.
  """
  path, step = checkpoint_files.last(model_dir), tf.GraphKeys.GLOBAL_STEP
  if path is None:
    path = gin.get_bindings("run").get("init_checkpoint")
    let_in = gin.get_bindings("tpu_estimator_model_fn").get(
        "init_variable_filter")
    if not path or not re.search(let_in or "", step):
      return 0
  reader = tf.train.load_checkpoint(path)
  return int(reader.get_tensor(step)) if reader.has_tensor(step) else 0


def check_end(model_dir: str, train_steps: int) -> None:
  """Raises ValueError if a run has been trained to its last step.

  Args:
    model_dir: folder of the run.
    train_steps: last step of the training.
  """
  if checkpoint_files.last(model_dir) is None:
    return
  step = first_step(model_dir)
  if step >= train_steps:
    raise ValueError(
        "run_t5: train_steps must be above the step of the last checkpoint, "
        f"with train_steps={train_steps}, last step={step}, model_dir="
        f"{model_dir}. Set train_steps (--train_steps under --use_model_api) "
        "to more steps, or choose another --model_dir.")


def _is_local(path: Any) -> bool:
  """Returns whether a value is a path that can be checked before the run."""
  return (isinstance(path, str) and bool(path) and "://" not in path
          and not isinstance(path, Macro | Reference))


def _check_teacher(path: Any, name: str) -> None:
  """Raises ValueError unless a folder or path has the teacher's checkpoint."""
  if not _is_local(path):
    return
  found = checkpoint_files.last(path) or path
  if not tf.io.gfile.exists(f"{found}.index"):
    raise ValueError(
        "distillation: the teacher's checkpoint must be there, with "
        f"checkpoint={path}, {checkpoint_files.around(path)}. Set {name} to a "
        "model_dir, or to a path such as DIR/model.ckpt-3000.")


def _check_steps(bindings: Sequence[Binding], path: str) -> None:
  """Raises ValueError unless training begins at a step before its last."""
  train_steps, steps_name = setting(bindings, "run.train_steps")
  let_in, _ = setting(bindings, "tpu_estimator_model_fn.init_variable_filter")
  if setting(bindings, "init_checkpoint_variable_mapping.mapping_fn")[0]:
    return  # the step may be taken over or not
  step = tf.GraphKeys.GLOBAL_STEP
  reader = tf.train.load_checkpoint(path)
  taken = reader.has_tensor(step) and re.search(let_in or "", step)
  begins = int(reader.get_tensor(step)) if taken else 0
  if taken and isinstance(train_steps, int) and train_steps <= begins:
    raise ValueError(
        "run_t5: train_steps must be above the step of init_checkpoint, from "
        f"which a run counts on, with {steps_name}={train_steps}, step of "
        f"init_checkpoint={begins}, init_checkpoint={path}. Set {steps_name} = "
        f"{begins + max(train_steps, 1)} for {max(train_steps, 1)} more steps, "
        "or leave the step out with tpu_estimator_model_fn."
        "init_variable_filter = '^(?!global_step)'.")
  seen, name = setting(bindings, "run.seen_data_init_step")
  skips, _ = setting(bindings, "run.skip_seen_data")
  # 0 is upstream's default, which the operative_config.gin of a run has, too.
  if skips and seen and isinstance(seen, int) and seen != begins:
    raise ValueError(
        f"run_t5: {name} must be the step at which the run begins, or a "
        f"resumed run reads other data, with {name}={seen}, first step="
        f"{begins}, init_checkpoint={path}. Set {name} = {begins}.")


def check(path: str, name: str = "utils.run.init_checkpoint") -> None:
  """Raises ValueError unless a path is that of a whole checkpoint.

  Args:
    path: value of `init_checkpoint`.
    name: what sets it.
  """
  if tf.io.gfile.exists(f"{path}.index"):
    checkpoint_files.require_readable(path, "run_t5", "init_checkpoint")
    return
  last = checkpoint_files.last(path)
  there = (f"which is a folder; its last checkpoint is {last}" if last else
           f"which has no .index file, {checkpoint_files.around(path)}")
  raise ValueError(
      "run_t5: init_checkpoint must be a checkpoint, with "
      f"init_checkpoint={path}, {there}. "
      f"Set {name} to a path such as DIR/model.ckpt-3000.")


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
