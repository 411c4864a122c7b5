"""Exports a dense model for T5's own tools, which do not need this project.

    python -m switch_mtf.checkpoints.plain_t5 --model_dir=DIR --output=NEW_DIR \
        [--checkpoint_step=STEP]

NEW_DIR gets the weights, without optimizer slots, and an operative_config.gin
that names T5's and mesh_tensorflow's layers only.
`t5.models.MtfModel(model_dir=NEW_DIR, ...)` evaluates the model and predicts
with it; `t5_mesh_transformer` trains it further.
"""

import argparse
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf import gin_files
from switch_mtf.gin_files import Macro, Reference
from switch_mtf.training import checkpoint_files, checkpoint_steps

CONFIG = "operative_config.gin"
IMPORTS = ("mesh_tensorflow.transformer.transformer",
           "mesh_tensorflow.transformer.transformer_layers")
# The configurables that define a model and the dtypes of its checkpoint.
CONFIGURABLES = frozenset({
    "Bitransformer", "make_bitransformer", "LayerStack", "make_layer_stack",
    "Unitransformer", "SelfAttention", "EncDecAttention", "DenseReluDense",
    "get_vocab_embedding_cls", "VocabEmbedding", "get_variable_dtype"})
# Our name -> the mesh_tensorflow name that computes the same numbers, or None
# where that is mesh_tensorflow's default.
UPSTREAM = {"rms_norm": "transformer.sublayer_rms_norm",
            "GatherEmbedding": None, "cross_entropy_from_ids": None}
# Macros kept even if the model does not use them, to record the task.
KEPT_MACROS = ("MIXTURE_NAME", "sequence_length")


def write(model_dir: str, output: str, step: int | None = None) -> str:
  """Writes the model of a run for T5's own tools.

  Args:
    model_dir: folder of a dense model's run, distilled or not.
    output: a folder that does not exist or is empty.
    step: step of the checkpoint; by default the last.

  Returns:
    The path of the new checkpoint.

  Raises:
    ValueError: if the checkpoint does not exist, the output is not empty, or
      the model has layers that T5 does not have.
  """
  path, = checkpoint_steps.require(
      model_dir, -1 if step is None else step, "--checkpoint_step", "plain_t5")
  checkpoint_files.require_readable(path, "plain_t5", "checkpoint")
  if tf.io.gfile.exists(output) and tf.io.gfile.listdir(output):
    raise ValueError(
        f"plain_t5: the output must be new, with output={output}. Set --output "
        "to another folder.")
  text = config(os.path.join(model_dir, CONFIG))
  tf.io.gfile.makedirs(output)
  with tf.io.gfile.GFile(os.path.join(output, CONFIG), "w") as f:
    f.write(text)
  return _write_weights(path, output)


def config(path: str) -> str:
  """Returns a run's gin configuration with upstream's layers only.

  Args:
    path: path of the run's operative_config.gin.

  Returns:
    The text of a gin file.

  Raises:
    ValueError: if the model has layers that T5 does not have.
  """
  macros = gin_files.macros(path)
  used, lines = set(KEPT_MACROS), []
  for binding in gin_files.read([path], [], []):
    selector, _, parameter = binding.name.rpartition(".")
    name = selector.rsplit(".", 1)[-1]
    if binding.scope.startswith("teacher") or name not in CONFIGURABLES:
      continue
    value = _upstream(binding.value, f"{selector}.{parameter}")
    if value is None and binding.value is not None:
      continue
    used |= {v for v in gin_files.flat(value) if isinstance(v, Macro)}
    scope = f"{binding.scope}/" if binding.scope else ""
    lines.append(f"{scope}{binding.name} = {gin_files.written(value)}")
  kept = [f"{name} = {gin_files.written(value)}"
          for name, value in macros.items() if name in used]
  return "\n".join([*(f"import {name}" for name in IMPORTS), "", *kept, "",
                    *lines, ""])


def _upstream(value, where: str):
  """Replaces our names in a value by upstream's; None for its default."""
  if isinstance(value, list | tuple):
    return type(value)(_upstream(part, where) for part in value)
  if not isinstance(value, Reference):
    return value
  name = value.removesuffix("()").rsplit("/", 1)[-1]
  if name in UPSTREAM:
    return UPSTREAM[name] and Reference(UPSTREAM[name])
  if "transformer" not in name.split(".")[:-1] and (
      "transformer_layers" not in name.split(".")[:-1]):
    raise ValueError(
        f"plain_t5: a model for T5 must have T5's layers only, with "
        f"{where}=@{name}. Distil it into a dense model first: "
        "gin/runs/distill.gin.")
  return value


def _write_weights(path: str, output: str) -> str:
  """Copies a checkpoint without optimizer slots; returns the new path."""
  reader = tf.train.load_checkpoint(path)
  with tf.Graph().as_default(), tf.Session() as session:
    for name in sorted(reader.get_variable_to_shape_map()):
      if "_slot_" not in name:
        value = reader.get_tensor(name)
        variable = tf.get_variable(
            name, dtype=value.dtype, shape=np.shape(value),
            use_resource=True, initializer=tf.zeros_initializer())
        variable.load(value, session)
    return tf.train.Saver().save(
        session, os.path.join(output, os.path.basename(path)),
        write_meta_graph=False)


def main() -> int:
  """Exports the model that the command line names; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog="python -m switch_mtf.checkpoints.plain_t5",
      description=__doc__.split("\n")[0])
  parser.add_argument("--model_dir", required=True)
  parser.add_argument("--output", required=True)
  parser.add_argument("--checkpoint_step", type=int)
  arguments = parser.parse_args()
  try:
    print(write(arguments.model_dir, arguments.output,
                arguments.checkpoint_step))
  except ValueError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
