"""T5's layer norm in fewer passes over memory and fewer operations."""

import functools

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf.kernels.choice import else_upstream, replaces_upstream
from switch_mtf.mesh import add_up, mesh_axis

EPSILON = 1e-6  # added to the mean square, as T5's checkpoints have it


def _can(x, context, **unused) -> bool:
  """Returns whether a processor has all features of its tokens."""
  model = context.model
  axis, _ = mesh_axis(model.model_dim, model.layout, model.mesh_shape)
  return (replaces_upstream(x.mesh) and not model.ensemble_dims
          and axis is None and x.shape.dims[-1] == model.model_dim)


@gin.configurable
@else_upstream(
    functools.partial(transformer.sublayer_rms_norm, epsilon=EPSILON), _can)
def rms_norm(
    x: mtf.Tensor, layer_stack: transformer.LayerStack,
    context: transformer.Context,
) -> mtf.Tensor:
  """Computes `transformer.sublayer_rms_norm`: same variable, same numbers.

  Keeps only its input for the backward pass. Upstream's function runs on TPU,
  in an ensemble and where d_model is split.

  Args:
    x: [batch dims, length?, d_model].
    layer_stack: stack of the layer.
    context: context of the stack.

  Returns:
    The normalised `x`, same shape.
  """
  del layer_stack
  with tf.variable_scope("rms_norm"):
    scale = mtf.get_variable(
        context.mesh, "scale", [context.model.model_dim],
        initializer=tf.ones_initializer(), dtype=context.variable_dtype)

  def grad(op: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor]:
    # The dimensions of dy may come in another order.
    dy = mtf.broadcast(dy, op.outputs[0].shape)
    return add_up(
        lambda *slices: unit_rms_grad(*slices, EPSILON), [dy, x, scale],
        [x.shape, scale.shape], [x.dtype, scale.dtype], "rms_norm_gradients")

  return mtf.slicewise(
      lambda x, scale: unit_rms(x, scale, EPSILON), [x, scale],
      splittable_dims=x.shape.dims[:-1], grad_function=grad, name="rms_norm")


def unit_rms(
    x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float) -> tf.Tensor:
  """Divides each row by the root of its mean square, times a scale.

  Args:
    x_TM: [..., d_model] - a row for each token.
    scale_M: [d_model].
    epsilon: added to the mean square.

  Returns:
    [..., d_model] - the rows.
  """
  return x_TM * _inverse_rms(x_TM, epsilon) * scale_M


def unit_rms_grad(
    dy_TM: tf.Tensor, x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes the gradients of `unit_rms` from its inputs alone.

  Args:
    dy_TM: [..., d_model] - gradients of the rows.
    x_TM: [..., d_model] - inputs of `unit_rms`.
    scale_M: [d_model] - inputs of `unit_rms`.
    epsilon: as in `unit_rms`.

  Returns:
    The gradients by x, [..., d_model], and by the scale, [d_model].
  """
  size = scale_M.shape.as_list()[0]
  dy, x = (tf.reshape(y, [-1, size]) for y in (dy_TM, x_TM))
  inverse = _inverse_rms(x, epsilon)
  products = dy * x
  # Both sums are matrices times a vector, which writes no product to memory.
  dscale = tf.matmul(inverse, products, transpose_a=True)
  along = tf.matmul(products, scale_M[:, None])
  dx = (dy * scale_M - x * (along * tf.square(inverse) / size)) * inverse
  return tf.reshape(dx, tf.shape(x_TM)), tf.reshape(dscale, [size])


def _inverse_rms(x: tf.Tensor, epsilon: float) -> tf.Tensor:
  return tf.math.rsqrt(
      tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + epsilon)
