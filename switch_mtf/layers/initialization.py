"""How weights start: section 2.4, Table 3.

Switch layers start as the paper says. `gin/models/_paper_init.gin` makes the
rest of a model do so, too.
"""

import copy
import zlib

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf import errors

# Under the scope of an attention layer, as `AttentionParams` names them.
ATTENTION_KERNELS = ("q", "k", "v", "kv", "o")


@gin.configurable
def init_scale(value: float = 0.1) -> float:
  """The scale s of the paper's initialisation.

  Weights are drawn from a normal distribution of mean 0 and deviation
  sqrt(s / n), n the number of inputs, cut off at two deviations. The paper
  found 0.1 more stable than the usual 1.0. The one place where it is set.

  Args:
    value: the scale.

  Returns:
    It.

  Raises:
    ValueError: if it is not positive.
  """
  errors.require_number("init_scale", above=0, value=value)
  return value


def kernel_initializer() -> mtf.layers.DenseInitializer:
  """The initialisation of every kernel of a Switch layer."""
  return mtf.layers.VarianceScalingInitializer(scale=init_scale())


@gin.configurable
def attention_init(scale: float | None = None) -> float | None:
  """The scale for the projections of T5's attention layers.

  Args:
    scale: as in `init_scale`; None leaves them as T5 draws them.

  Returns:
    It.

  Raises:
    ValueError: if it is not positive.
  """
  if scale is not None:
    errors.require_number("attention_init", above=0, scale=scale)
  return scale


def scale_attention(scope: tf.VariableScope) -> None:
  """Makes attention projections below `scope` start as `attention_init` says.

  `AttentionParams` takes no initialiser. It draws from a normal distribution
  that is not cut off; its deviation (with T5's d_kv^-1/2 for queries) is kept,
  times the square root of the scale.

  Args:
    scope: of the model's variables, before any is made.
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
  """A custom getter of variables that draws by their names.

  TensorFlow's numbers follow from how much stands before them in the graph,
  so that a student would start otherwise without its teacher beside it.

  Args:
    getter: see `tf.variable_scope`.
    name: of the variable, with its scope.
    *args: passed on.
    **kwargs: passed on.
  """
  drawn = kwargs.get("initializer")
  if getattr(drawn, "seed", 0) is None:
    kwargs["initializer"] = drawn = copy.copy(drawn)
    drawn.seed = zlib.crc32(name.encode()) >> 1  # not negative in 32 bits
  return getter(name, *args, **kwargs)
