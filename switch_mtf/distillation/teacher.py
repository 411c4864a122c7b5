"""The teacher of a distillation: its model, its checkpoint, its experts."""

import dataclasses
import os
from typing import Any

import gin
import seqio
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer
from t5.models import mesh_transformer

from switch_mtf import gin_files
from switch_mtf.training import checkpoint_files, metrics

TEACHER = "teacher"  # scope of its bindings and of its variables


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model.

  Attributes:
    checkpoint: a model_dir, or the path of a checkpoint without ".index".
    config: gin file of the model; None if the run's gin configures the whole
      model in the scope `teacher/`.
  """

  checkpoint: str
  config: str | None

  def build(self, **arguments: Any) -> transformer.Bitransformer:
    """Returns the model that the gin file and the scope `teacher/` configure.

    Args:
      **arguments: see `transformer.make_bitransformer`.

    Raises:
      ValueError: if the teacher's vocabulary is not the run's.
    """
    if self.config is not None:
      _check_vocabulary(self.config)
      gin_files.bind_in_scope(self.config, TEACHER)
    with gin.config_scope(TEACHER):
      return transformer.make_bitransformer(**arguments)

  def trained(self) -> str:
    """Returns the path of the checkpoint: for a model_dir, its last.

    Raises:
      ValueError: if no checkpoint exists.
    """
    path = self.checkpoint
    if tf.io.gfile.isdir(path):
      path = checkpoint_files.last(path)
    if not path or not tf.io.gfile.exists(f"{path}.index"):
      raise ValueError(
          "distillation: the teacher's checkpoint must be there, with "
          f"checkpoint={self.checkpoint}, "
          f"{checkpoint_files.around(self.checkpoint)}. Set "
          "distill_from.checkpoint to a model_dir, or to a path such as "
          "DIR/model.ckpt-3000.")
    return path


@gin.configurable
def distill_from(
    checkpoint: str = gin.REQUIRED, config: str | None = "beside"
) -> Teacher:
  """Returns the teacher of a distillation.

  Args:
    checkpoint: the teacher's checkpoint, such as DIR/model.ckpt-3000, or a
      model_dir, whose last checkpoint is used.
    config: gin file of the teacher's model. By default the operative_config.gin
      beside the checkpoint; None if the run's gin configures the whole model in
      the scope `teacher/`.

  Returns:
    The teacher, not yet built.

  Raises:
    ValueError: if the gin file does not exist.
  """
  if config == "beside":
    folder = (checkpoint if tf.io.gfile.isdir(checkpoint)
              else os.path.dirname(checkpoint))
    config = os.path.join(folder, "operative_config.gin")
  if config is not None and not tf.io.gfile.exists(config):
    raise ValueError(
        "distillation: the teacher's gin file must be there, with "
        f"config={config}. Set distill_from.checkpoint to the teacher's "
        "folder, or distill_from.config to the gin file of its model.")
  return Teacher(checkpoint, config)


def _check_vocabulary(config: str) -> None:
  """Raises ValueError if a gin file names a task with another vocabulary."""
  name = gin_files.macros(config).get("MIXTURE_NAME")
  known = seqio.TaskRegistry.names() | seqio.MixtureRegistry.names()
  if name not in known:
    return
  ours, theirs = (mesh_transformer.get_vocabulary(),
                  mesh_transformer.get_vocabulary(name))
  if ours != theirs:
    raise ValueError(
        "distillation: student and teacher must have one vocabulary, with "
        f"{ours[1]} in the run, {theirs[1]} in the teacher's {name}. Set "
        "MIXTURE_NAME to a task with the teacher's vocabulary, or "
        "distill_from.checkpoint to a teacher with the run's vocabulary.")


def most_used_experts(model_dir: str) -> dict[str, int]:
  """Returns each Switch layer's most used expert, from the last record.

  Args:
    model_dir: folder of the teacher's run, with its metrics.jsonl.

  Returns:
    Sublayer, such as "encoder/block_000/layer_003" -> index of the expert.

  Raises:
    ValueError: if the last record has no load of experts.
  """
  records = metrics.read(model_dir, "train")
  found = {
      name.removesuffix(f"/{metrics.LOAD}"): max(range(len(load)),
                                                 key=load.__getitem__)
      for name, load in (records[-1].items() if records else ())
      if name.endswith(metrics.LOAD)}
  if not found:
    raise ValueError(
        "distillation: the teacher's run must have recorded the load of its "
        f"experts, with model_dir={model_dir}. Set distillation.replaced to "
        "'fresh' or 'mean_expert'.")
  return found
