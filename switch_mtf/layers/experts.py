"""One network per expert.

All networks are applied as batched matmuls over the experts' slots, or, where
tokens have no slots (see `dispatch`), to the tokens of each expert.
"""

import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.dims import MoeDims, check_shape, unsplit
from switch_mtf.kernels import matmuls
from switch_mtf.layers import stateless
from switch_mtf.layers.initialization import kernel_initializer

# Functions of Mesh-TF that make sense between two matmuls.
ACTIVATIONS = (
    "linear", "relu", "gelu", "swish", "sigmoid", "tanh", "softplus", "elu",
    "selu", "leaky_relu", "square", "exp", "sin", "cos", "abs")


def apply_experts(
    x: mtf.Tensor,
    expert_OGSK: mtf.Tensor,
    dims: MoeDims,
    *,
    activation: list[str],
    dropout_rate: float,
    variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Applies to each row the network of its expert: y = act(x W_in) W_out.

  Expert dropout acts on the hidden units (Switch Transformer,
  https://arxiv.org/abs/2101.03961, section 2.4). An expert without hidden units
  is one linear map, y = x W_out (appendix A). The results of empty slots are
  never read.

  Args:
    x: `dims.EXM`, the filled slots; or `dims.OGSKM`, the token of each choice.
    expert_OGSK: int32 - the expert of each choice. Only `dims.OGSKM` needs it:
      a slot belongs to its expert.
    dims: sizes of the layer's dimensions.
    activation: names of `ACTIVATIONS`, whose results are multiplied, such as
      ["gelu", "linear"] for GEGLU; none if the experts are linear.
    dropout_rate: probability of dropping a hidden unit, in [0, 1).
    variable_dtype: dtypes of the weights.

  Returns:
    The shape of `x` with `dims.output_dim` instead of d_model - the results.

  Raises:
    ValueError: if `x` does not have the dimensions above, in that order.
  """
  if x.shape.dims == dims.OGSKM:
    return _apply_chosen(x, expert_OGSK, dims, activation, variable_dtype)
  check_shape(x, dims.EXM, "apply_experts x")
  input_dim, options = dims.model_dim, dict(
      expert_dims=[dims.experts_dim], use_bias=False,
      kernel_initializer=kernel_initializer(), variable_dtype=variable_dtype)
  if activation:
    x = mtf.layers.dense_product(
        x, reduced_dims=[input_dim], new_dims=[dims.ff_dim],
        activation_functions=activation, name="wi", **options)
    if dropout_rate:
      x *= stateless.dropout_mask(x, dropout_rate, "expert_dropout")
    input_dim = dims.ff_dim
  else:
    # The kernel may not carry one name twice.
    input_dim = unsplit(dims.model_dim)
    x = mtf.rename_dimension(x, dims.model_dim.name, input_dim.name)
  return mtf.layers.dense(
      x, [dims.output_dim], reduced_dims=[input_dim], name="wo", **options)


def _apply_chosen(
    x_OGSKM: mtf.Tensor, expert_OGSK: mtf.Tensor, dims: MoeDims,
    activation: list[str], variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Applies to the token of each choice the network of its expert; OGSKN.

  No gradient, no dropout.
  """
  def multiply(x: mtf.Tensor, name: str, new_dim: mtf.Dimension) -> mtf.Tensor:
    return _times_chosen(
        x, expert_OGSK, name, dims.experts_dim, new_dim, variable_dtype)

  h = x_OGSKM
  if activation:
    names = [f"wi_{i}" for i in range(len(activation))]
    factors = [
        (mtf.identity if function == "linear" else getattr(mtf, function))(
            multiply(h, name, dims.ff_dim))
        for function, name in zip(
            activation, names if len(names) > 1 else ["wi"], strict=True)]
    h = functools.reduce(mtf.multiply, factors)
  return multiply(h, "wo", dims.output_dim)


def _times_chosen(
    x: mtf.Tensor, expert_OGSK: mtf.Tensor, name: str,
    experts_dim: mtf.Dimension, new_dim: mtf.Dimension,
    variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Multiplies each choice's row by the kernel `name` of its expert."""
  input_dim = x.shape.dims[-1]
  with tf.variable_scope(name):
    kernel = mtf.get_variable(
        x.mesh, "kernel", [experts_dim, unsplit(input_dim), new_dim],
        initializer=kernel_initializer()([input_dim], [new_dim]),
        dtype=variable_dtype)
  shape = mtf.Shape([*x.shape.dims[:-1], new_dim])

  def multiply(x: tf.Tensor, expert: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    rows = matmuls.chosen_matmul(
        tf.reshape(x, [-1, input_dim.size]), tf.reshape(expert, [-1]), kernel)
    return tf.reshape(rows, shape.to_integer_list)

  # One processor holds everything, so that every dimension may count as split:
  # into one part.
  inputs = [x, expert_OGSK, kernel]
  return mtf.slicewise(
      multiply, inputs, output_shape=shape, grad_function=0,
      splittable_dims=[d for t in inputs for d in t.shape.dims] + [new_dim],
      name="times_chosen")
