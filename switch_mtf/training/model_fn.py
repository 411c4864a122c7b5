"""Adds the hooks, the seed and the guards to every model graph.

`run_t5.py` calls `install` once. The additions by mode:

  before the graph    the run's random seed; the dtype of the activations; the
                      initialisation of attention layers
  train               progress instead of a line per step, with the nats of a
                      real target; metrics.jsonl, TensorBoard; a clean stop; a
                      check that the disk has room for the checkpoints; a
                      report of the weights taken over from another run
  train, eval         a check that each id is in the vocabulary
  eval                the layers' metrics, averaged over the targets; speed
  all                 a check that the checkpoint in model_dir is of this model
"""

import sys

import gin
import tensorflow.compat.v1 as tf

from switch_mtf import errors
from switch_mtf.kernels import embedding
from switch_mtf.layers import initialization, stateless, summaries
from switch_mtf.layers.dispatch import drop_nothing
from switch_mtf.mesh import on_tpu
from switch_mtf.training import (
  checkpoint_files,
  checkpoint_steps,
  data_checks,
  evaluations,
  following,
  guards,
  hooks,
  outcomes,
  warm_start,
)
from switch_mtf.upstream import (
  api_seams,
  checkpoint_seams,
  evaluation_seams,
  seams,
  training_step,
)

ModeKeys = tf.estimator.ModeKeys


@gin.configurable
def progress(
    train_steps: int | None = None,
    record_steps: int = 100,
    print_seconds: float = 10.0,
) -> dict:
  """Sets how often a training run reports its progress.

  Args:
    train_steps: last step of the run, from which the time left is computed.
      The files of `gin/runs/` bind it to the macro of `utils.run.train_steps`.
    record_steps: number of steps between two records in `metrics.jsonl` and
      TensorBoard. A record costs about one more step, for the layers' metrics.
    print_seconds: seconds between two printed lines.

  Returns:
    The arguments as a dict.

  Raises:
    ValueError: if `record_steps` is not positive.
  """
  if record_steps < 1:
    raise ValueError(
        "progress: record_steps must be at least 1, with "
        f"record_steps={record_steps}. Set progress.record_steps.")
  return dict(train_steps=train_steps, record_steps=record_steps,
              print_seconds=print_seconds)


@gin.configurable
def precision(activation_dtype: str | None = None) -> str | None:
  """Sets the dtype of activations, also on CPU and GPU.

  On CPU and GPU, T5's main binds `utils.get_variable_dtype.activation_dtype` to
  "float32", whatever the gin files say.

  Args:
    activation_dtype: "float32" or "bfloat16"; None keeps T5's choice.

  Returns:
    The argument.

  Raises:
    ValueError: if `activation_dtype` has another value.
  """
  errors.require_one_of("precision", (None, "float32", "bfloat16"),
                activation_dtype=activation_dtype)
  return activation_dtype


class TrainingExtension(seams.ModelFnExtension):
  """An extension that adds the parts that the module docstring lists."""

  def before_graph(self, run: seams.ModelRun) -> None:
    """Sets TensorFlow's seed, the activations' dtype and the initialisation."""
    if run.mode == ModeKeys.TRAIN and run.model_dir:
      checkpoint_steps.check_new_training(run.model_dir)
    if warm_start.begins_from_another(run):
      warm_start.check(run.init_checkpoint)
    dtype = precision()
    if dtype is not None:
      with gin.unlock_config():
        gin.bind_parameter("utils.get_variable_dtype.activation_dtype", dtype)
    tf.set_random_seed(stateless.random_seed())
    if run.mode == ModeKeys.TRAIN:
      stateless.use_step()
    initialization.scale_attention(tf.get_variable_scope())

  def see_loss(self, model, context, logits, targets, vocab_dim) -> None:
    """Records the nats and the number of a training step's real targets."""
    if context.train and not on_tpu(logits.mesh):
      total, count = embedding.nats(model, context, logits, targets, vocab_dim)
      training_step.sum_over_step(
          {"nats": total, "targets": count}, summaries.record_step)

  def explain(
      self, run: seams.ModelRun, error: Exception
  ) -> Exception | None:
    """Returns a clearer error for a mesh or checkpoint that does not fit."""
    return (errors.explain_mesh_error(error, run.mesh_shape, run.layout_rules)
            or warm_start.explain(run, error))

  def finish(self, run: seams.ModelRun, spec):
    """Adds the mode's parts; none on TPU, where hooks cannot see the step."""
    if run.model_dir:
      guards.check_checkpoint(run.model_dir, tf.global_variables())
    if run.mode == ModeKeys.PREDICT:
      tell_drop_nothing()
    if run.use_tpu:
      return spec
    if run.mode == ModeKeys.TRAIN:
      return _extend_train(run, spec)
    if run.mode == ModeKeys.EVAL:
      return _extend_eval(run, spec)
    return spec


def install() -> None:
  """Registers with `upstream` what a run needs: see `seams`."""
  checkpoint_seams.find_checkpoints_with(
      checkpoint_steps.require, following.follow)
  evaluation_seams.record_evaluations_with(evaluations.record)
  api_seams.record_api_evaluations_with(
      evaluations.record, outcomes.refuse_api)
  api_seams.check_training_with(warm_start.check_end)
  checkpoint_seams.go_on_from(checkpoint_files.last)
  checkpoint_seams.tell_steps()
  checkpoint_seams.finetune_with_flags()
  checkpoint_seams.obey_gin_param_under_model_api()
  seams.extend_model_fn(TrainingExtension())
  seams.draw_uniform_with(stateless.uniform_for_upstream)


def layer_metrics() -> dict[str, tf.Tensor]:
  """Returns the metrics that the default graph's layers recorded, by name."""
  return dict(tf.get_collection(summaries.METRICS_COLLECTION))


def step_sums() -> dict[str, tf.Tensor]:
  """Returns the nats and the number of the default graph's real targets."""
  return dict(tf.get_collection(summaries.STEP_COLLECTION))


def tell_loss_weights() -> None:
  """Prints the total weight of each auxiliary loss in the model's loss.

  Auxiliary losses are summed over the layers. In code that takes their mean, as
  T5X does, the same coefficient has a weaker effect.
  """
  for name, weights in summaries.loss_weights().items():
    print(f"{name}: {len(weights)} layers, together weighing "
          f"{sum(weights):.4g} times their mean", file=sys.stderr)


def tell_drop_nothing() -> None:
  """Prints that experts drop no token, if that is so in this prediction."""
  if drop_nothing() and any(
      "/router/kernel" in v.op.name for v in tf.global_variables()):
    print("Experts drop no token (drop_nothing.value = True).", file=sys.stderr)


def _extend_train(run: seams.ModelRun, spec):
  """Adds the guards, reports and hooks of training."""
  guards.check_room(
      run.model_dir, tf.global_variables(), run.keep_checkpoint_max)
  tell_loss_weights()
  if warm_start.begins_from_another(run):
    for line in warm_start.lines(run, tf.global_variables()):
      print(line, file=sys.stderr)
  loss = spec.loss
  if loss.op.type == "Print":  # tf.Print, which prints one line per step
    loss = loss.op.inputs[0]
  new_hooks = [
      hooks.ProgressHook(
          model_dir=run.model_dir, loss=loss, step_sums=step_sums(),
          layer_metrics=layer_metrics(), tokens_per_step=run.tokens_per_step,
          **progress()),
      hooks.StopHook(), *data_checks.hooks(run)]
  return spec._replace(
      loss=loss,
      training_chief_hooks=[*spec.training_chief_hooks, *new_hooks])


def _extend_eval(run: seams.ModelRun, spec):
  """Adds the layers' metrics and the speed to an evaluation."""
  # The last of the tensors is 1 for a real target and 0 for padding.
  metric_fn, tensors = spec.eval_metrics
  layers = layer_metrics()

  def with_layers(*values):
    found = metric_fn(*values[:len(tensors)])
    # Batches of padding follow a split that ends early, and must not count.
    tokens = tf.reduce_sum(values[len(tensors) - 1])
    for name, value in zip(layers, values[len(tensors):], strict=True):
      found[name] = tf.metrics.mean_tensor(value, weights=tokens)
    return found

  # A TPUEstimatorSpec records its metrics in its constructor: no _replace.
  found = {**spec._asdict(),
           "eval_metrics": (with_layers, [*tensors, *layers.values()])}
  if run.model_dir:
    found["evaluation_hooks"] = [
        *(spec.evaluation_hooks or ()), *data_checks.hooks(run),
        hooks.EvaluationSpeedHook(run.model_dir, run.tokens_per_step)]
  return type(spec)(**found)
