"""Explains the configuration that gin files resolve to, before a run starts."""

import os
from collections.abc import Callable
from typing import Any

import seqio
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf.planning import fit, report
from switch_mtf.planning.configuration import bound
from switch_mtf.planning.plan import Plan

# Fractions of a run's steps at which the learning rate is shown.
MOMENTS = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)


def text(plan: Plan, model_dir: str) -> str:
  """Returns the resolved configuration of a run.

  Args:
    plan: plan of the run.
    model_dir: folder that the run would write to.

  Returns:
    Lines of text, grouped by topic.
  """
  config = plan.configuration
  arguments = config.arguments
  topics = {
      "mode": [config.mode, *report.added(config)],
      "model": [
          f"{arguments['model_type']}, {plan.parameters.total:,} parameters, "
          f"{plan.parameters.active_per_token:,} of them used per token",
          *_layers(plan)],
      "mesh": [fit.written(config.mesh_shape) or "one processor",
               f"layout rules {bound('utils.run.layout_rules')}",
               *_dtypes()],
      "data": _data(config.sequence_length),
      "batch": [f"{config.batch_size:,} sequences = "
                f"{config.tokens_per_step:,} tokens, in "
                f"{config.num_microbatches} microbatches"],
      "schedule": [f"{config.train_steps:,} steps, "
                   f"{_name(arguments['optimizer'])}",
                   *_learning_rates(
                       arguments["learning_rate_schedule"],
                       config.train_steps)],
      "losses": _losses(plan),
      "writes": _writes(plan, model_dir),
  }
  lines = []
  for topic, found in topics.items():
    lines += [f"{topic if i == 0 else '':<10}{line}"
              for i, line in enumerate(found)]
  return "\n".join(lines)


def comparison(plan: Plan, model_dir: str) -> str | None:
  """Lists the runs that a comparison of models would start.

  Args:
    plan: plan of the run.
    model_dir: folder that the run would write to.

  Returns:
    Lines of text; None if the run is not a comparison.
  """
  models = bound("compare.models")
  if models is None or _name(plan.configuration.train_model_fn) != "compare":
    return None
  lines = [f"compares {len(models)} models, one run per model and seed:"]
  for seed in bound("compare.seeds") or (0,):
    lines += [f"  {name}: {path}, seed = {seed}, writes "
              f"{os.path.join(model_dir, f'{name}_seed{seed}')}"
              for name, path in models.items()]
  return "\n".join([
      *lines, f"then writes {os.path.join(model_dir, 'report')}.",
      "The configuration of this gin file itself:"])


def _layers(plan: Plan) -> list[str]:
  """Returns one line per kind of weight matrix, with its number and shape."""
  kinds: dict[tuple[str, str, str], int] = {}
  for name, shape in plan.variables:
    parts = name.split("/")
    stack = parts[0]
    rest = "/".join(p for p in parts[1:]
                    if not p.startswith(("block_", "layer_")))
    sizes = " x ".join(f"{dim.name} {dim.size}" for dim in shape.dims)
    key = stack, rest, sizes
    kinds[key] = kinds.get(key, 0) + 1
  return [f"{count:>3} {stack}/{rest}: {sizes}"
          for (stack, rest, sizes), count in kinds.items()
          if not rest.endswith("scale")]


def _dtypes() -> list[str]:
  """Returns the dtypes of weights, activations and checkpoints."""
  dtype = utils.get_variable_dtype()
  return [f"weights {dtype.slice_dtype.name}, activations "
          f"{dtype.activation_dtype.name}, checkpoint "
          f"{dtype.master_dtype.name}"]


def _data(lengths: dict[str, int]) -> list[str]:
  """Returns the task or mixture, and the sequence lengths, of training."""
  name = bound("mesh_train_dataset_fn.mixture_or_task_name")
  lines = [str(name)]
  if name in seqio.MixtureRegistry.names():
    mixture = seqio.MixtureRegistry.get(name)
    lines[0] += f", a mixture of {len(mixture.tasks)} tasks"
  return [*lines, ", ".join(f"{feature} {length} tokens"
                            for feature, length in lengths.items())]


def _learning_rates(schedule: Any, train_steps: int) -> list[str]:
  """Returns the learning rate at some steps."""
  if not callable(schedule):
    return [f"learning rate {schedule}"]
  steps = sorted({int(part * train_steps) for part in MOMENTS})
  with tf.Graph().as_default(), tf.Session() as session:
    rates = session.run([
        tf.convert_to_tensor(schedule(step=tf.constant(step, tf.int32)))
        for step in steps])
  return ["learning rate " + ", ".join(
      f"{rate:.3g} at {step:,}"
      for step, rate in zip(steps, rates, strict=True))]


def _losses(plan: Plan) -> list[str]:
  """Returns every term of the loss, with its weight."""
  model = plan.configuration.arguments["transformer_model"]
  stack = getattr(model, "decoder", model)
  return [
      f"cross-entropy 1, label smoothing {stack.label_smoothing}",
      f"z-loss of the softmax {stack.z_loss}",
      *(f"{name} {sum(weights):.4g}: {len(weights)} layers of {weights[0]:.4g}"
        for name, weights in plan.loss_weights.items())]


def _writes(plan: Plan, model_dir: str) -> list[str]:
  """Returns the files that the run writes, and the phases that follow."""
  checkpoint = sum(shape.size for _, shape in plan.variables) * 4
  every = bound("utils.run.save_checkpoints_steps")
  phases = bound("train_then.phases") or []
  return [
      f"{_absolute(model_dir)}: operative_config.gin, metrics.jsonl, "
      "TensorBoard events",
      f"a checkpoint every {every} steps, {report.in_bytes(checkpoint)} and "
      "the optimizer's slots, "
      f"{bound('utils.run.keep_checkpoint_max') or 'all'} kept",
      *(f"then {phase}" for phase in phases)]


def _absolute(folder: str) -> str:
  """Returns the absolute path of a local folder; leaves a URL as it is."""
  return folder if "://" in folder else os.path.abspath(folder)


def _name(thing: Callable) -> str:
  """Returns the name of a function or class."""
  return getattr(thing, "__name__", str(thing))
