"""Initialises weights: section 2.4, Table 3.

Switch layers are initialised as in the paper. `gin/models/_paper_init.gin` does
the same for the rest of a model.
"""

import copy
import zlib

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors

# The names that `AttentionParams` gives to an attention layer's kernels.
ATTENTION_KERNELS = ("q", "k", "v", "kv", "o")


@gin.configurable
def init_scale(value: float = 0.1) -> float:
  """Returns the scale s of the paper's initialisation.

  Weights are drawn from a normal distribution of mean 0 and standard deviation
  sqrt(s / n), where n is the number of inputs, truncated at two standard
  deviations. The paper found 0.1 more stable than the usual 1.0. The scale is
  set nowhere else.

  Args:
    value: the scale.

  Returns:
    `value`.

  Raises:
    ValueError: if `value` is not positive.
  """
  errors.require_number("init_scale", above=0, value=value)
  return value


def kernel_initializer() -> mtf.layers.DenseInitializer:
  """Returns the initialiser of every kernel of a Switch layer."""
  return mtf.layers.VarianceScalingInitializer(scale=init_scale())


@gin.configurable
def attention_init(scale: float | None = None) -> float | None:
  """Returns the scale for the projections of T5's attention layers.

  Args:
    scale: as in `init_scale`; None keeps T5's initialisation.

  Returns:
    `scale`.

  Raises:
    ValueError: if `scale` is not positive.
  """
  if scale is not None:
    errors.require_number("attention_init", above=0, scale=scale)
  return scale


def scale_attention(scope: tf.VariableScope) -> None:
  """Scales the attention projections below `scope` by `attention_init`.

  `AttentionParams` takes no initialiser, and draws from a normal distribution
  that is not truncated. This function truncates it, and multiplies its standard
  deviation (with T5's d_kv^-1/2 for queries) by the square root of the scale.

  Args:
    scope: scope of the model's variables, before any variable is created.
  """
  scale = attention_init()
  if scale is None:
    return

  def scaled(getter, name, *args, **kwargs):
    drawn = kwargs.get("initializer")
    if (name.split("/")[-1] in ATTENTION_KERNELS
        and isinstance(drawn, tf.random_normal_initializer)):
      kwargs["initializer"] = tf.truncated_normal_initializer(
          stddev=drawn.stddev * scale**0.5)
    return getter(name, *args, **kwargs)

  scope.set_custom_getter(scaled)


def seed_by_name(getter, name: str, *args, **kwargs) -> tf.Variable:
  """Gets a variable whose initial value is seeded by its name.

  TensorFlow derives a seed from the number of earlier operations in the graph,
  so a student's initial weights would depend on whether its teacher is in the
  graph.

  Args:
    getter: the getter to call; this function is a custom getter, see
      `tf.variable_scope`.
    name: name of the variable, with its scope.
    *args: further arguments of `getter`.
    **kwargs: further arguments of `getter`; an initialiser without a seed is
      replaced by a seeded copy.

  Returns:
    The variable.
  """
  drawn = kwargs.get("initializer")
  if getattr(drawn, "seed", 0) is None:
    kwargs["initializer"] = drawn = copy.copy(drawn)
    drawn.seed = zlib.crc32(name.encode()) >> 1  # nonnegative int32
  return getter(name, *args, **kwargs)
