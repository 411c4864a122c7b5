"""One network per expert, all of them as batched matmuls."""

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


def expert_ffn(
    x_EXM: mtf.Tensor,
    dims: MoeDims,
    output_dim: mtf.Dimension,
    *,
    activation: str | list[str],
    dropout_rate: float,
    train: bool,
    variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Applies to each slot the network of its expert: y = act(x W_in) W_out.

  Expert dropout acts on the hidden units, in training only (Switch Transformer,
  https://arxiv.org/abs/2101.03961, section 2.4). Nobody reads the result of an
  empty slot.

  Args:
    x_EXM: `dims.EXM` - filled slots.
    dims: sizes.
    output_dim: of the results; d_model in a feed-forward layer.
    activation: one of `ACTIVATIONS`, or a list of them whose results are
      multiplied, such as ["gelu", "linear"] for GEGLU.
    dropout_rate: probability of dropping a hidden unit, in [0, 1).
    train: whether dropout is on.
    variable_dtype: of the weights.

  Returns:
    The same, with `output_dim` in place of d_model - results.

  Raises:
    ValueError: if `x` does not have the dimensions above, in that order.
  """
  check_shape(x_EXM, dims.EXM, "expert_ffn x")
  h_EXF = mtf.layers.dense_product(
      x_EXM, reduced_dims=[dims.model_dim], new_dims=[dims.ff_dim],
      expert_dims=[dims.experts_dim], activation_functions=activation,
      use_bias=False, kernel_initializer=kernel_initializer(),
      variable_dtype=variable_dtype, name="wi")
  if train and dropout_rate:
    h_EXF *= stateless.dropout_mask(h_EXF, dropout_rate, "expert_dropout")
  return _output(h_EXF, dims.ff_dim, dims, output_dim, variable_dtype)


def expert_linear(
    x_EXM: mtf.Tensor,
    dims: MoeDims,
    output_dim: mtf.Dimension,
    *,
    variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Applies to each slot the linear map of its expert: y = x W_out.

  Switch Transformer, https://arxiv.org/abs/2101.03961, appendix A.

  Args:
    x_EXM: `dims.EXM` - filled slots.
    dims: sizes.
    output_dim: of the results.
    variable_dtype: of the weights.

  Returns:
    The same, with `output_dim` in place of d_model - results.

  Raises:
    ValueError: if `x` does not have the dimensions above, in that order.
  """
  check_shape(x_EXM, dims.EXM, "expert_linear x")
  # The kernel cannot carry one name twice.
  input_dim = unsplit(dims.model_dim)
  x_EXM = mtf.rename_dimension(x_EXM, dims.model_dim.name, input_dim.name)
  return _output(x_EXM, input_dim, dims, output_dim, variable_dtype)


# Up to how many choices of tokens reading only their experts is faster.
FEW_CHOICES = 32


def chosen_experts(
    x_OGSM: mtf.Tensor,
    expert_OGSK: mtf.Tensor,
    weight_OGSK: mtf.Tensor,
    dims: MoeDims,
    output_dim: mtf.Dimension,
    *,
    activation: list[str],
    variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """Dispatches, applies the experts and combines at once, for a few tokens.

  Decoding a few sequences takes as long as reading weights takes, and with many
  experts most are those of experts that no token has chosen.

  Args:
    x_OGSM: `dims.OGSM` - the tokens, on one processor.
    expert_OGSK: int32 - the experts of each; nobody may be dropped.
    weight_OGSK: factors of their results.
    dims: sizes.
    output_dim: of the results.
    activation: names of `ACTIVATIONS`; none if experts are linear.
    variable_dtype: of the weights, which must have been made.

  Returns:
    [outer_batch, batch, group, output_dim] - as the dispatchers would combine.
  """
  def multiply(x: mtf.Tensor, name: str, new_dim: mtf.Dimension) -> mtf.Tensor:
    return _times_chosen(
        x, expert_OGSK, name, dims.experts_dim, new_dim, variable_dtype)

  h = mtf.broadcast(x_OGSM, mtf.Shape([*dims.OGSK, dims.model_dim]))
  if activation:
    names = [f"wi_{i}" for i in range(len(activation))]
    factors = [
        (mtf.identity if function == "linear" else getattr(mtf, function))(
            multiply(h, name, dims.ff_dim))
        for function, name in zip(
            activation, names if len(names) > 1 else ["wi"], strict=True)]
    h = functools.reduce(mtf.multiply, factors)
  y_OGSKM = multiply(h, "wo", output_dim)
  return mtf.reduce_sum(
      y_OGSKM * mtf.cast(weight_OGSK, y_OGSKM.dtype),
      reduced_dim=dims.choices_dim)


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
  # All may be split, since there is one processor only: into one part.
  inputs = [x, expert_OGSK, kernel]
  y = mtf.slicewise(
      lambda x, expert, kernel: matmuls.chosen_matmul(
          tf.reshape(x, [-1, input_dim.size]), tf.reshape(expert, [-1]),
          kernel),
      inputs, splittable_dims=[d for t in inputs for d in t.shape.dims],
      grad_function=0,
      output_shape=[
          mtf.Dimension("rows", expert_OGSK.shape.size), new_dim],
      name="times_chosen")
  return mtf.reshape(y, [*x.shape.dims[:-1], new_dim])


def _output(
    h: mtf.Tensor, reduced_dim: mtf.Dimension, dims: MoeDims,
    output_dim: mtf.Dimension, variable_dtype: mtf.VariableDType,
) -> mtf.Tensor:
  """The last matmul of an expert: h W_out, over `reduced_dim`."""
  return mtf.layers.dense(
      h, [output_dim], reduced_dims=[reduced_dim],
      expert_dims=[dims.experts_dim], use_bias=False,
      kernel_initializer=kernel_initializer(), variable_dtype=variable_dtype,
      name="wo")
