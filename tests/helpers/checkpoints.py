"""Makes small checkpoints."""

import os

import numpy as np
import tensorflow.compat.v1 as tf


def save(folder, *steps, listed=None, parts=1, **tensors):
  """Makes checkpoints; `listed`: the step that the file `checkpoint` names.

  `tensors` are their variables, by default one of 12 bytes.
  """
  os.makedirs(folder, exist_ok=True)
  tensors = tensors or {"v": np.zeros(3, np.float32)}
  for step in steps:
    prefix = os.path.join(folder, f"model.ckpt-{step}")
    with tf.Graph().as_default(), tf.Session() as session:
      session.run(tf.raw_ops.SaveV2(
          prefix=prefix, tensor_names=list(tensors),
          shape_and_slices=[""] * len(tensors),
          tensors=[tf.constant(value) for value in tensors.values()]))
    for part in range(1, parts):
      name = f"{prefix}.data-{part:05}-of-{parts:05}"
      open(name, "w").close()
    if parts > 1:
      os.rename(f"{prefix}.data-00000-of-00001",
                f"{prefix}.data-00000-of-{parts:05}")
  if listed is not None:
    with open(os.path.join(folder, "checkpoint"), "w") as f:
      f.write(f'model_checkpoint_path: "model.ckpt-{listed}"\n'
              f'all_model_checkpoint_paths: "model.ckpt-{listed}"\n')
  return folder
