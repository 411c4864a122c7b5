"""T5's layer norm in fewer passes over memory and fewer operations."""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf.mesh import mesh_axis, on_tpu, split_dims

EPSILON = 1e-6  # added to the mean square, as T5's checkpoints have it


@gin.configurable
def rms_norm(
    x: mtf.Tensor, layer_stack: transformer.LayerStack,
    context: transformer.Context,
) -> mtf.Tensor:
  """`transformer.sublayer_rms_norm`: same variable, same numbers.

  It keeps only its input for the backward pass. On TPU, in an ensemble and
  where d_model is split it is upstream's.

  Args:
    x: [batch dims, length?, d_model].
    layer_stack: of the layer.
    context: of the stack.

  Returns:
    The shape of `x`.
  """
  model_dim = context.model.model_dim
  layout, mesh_shape = context.model.layout, context.model.mesh_shape
  axis, _ = mesh_axis(model_dim, layout, mesh_shape)
  if on_tpu(x.mesh) or context.model.ensemble_dims or axis is not None or (
      x.shape.dims[-1] != model_dim):
    return transformer.sublayer_rms_norm(
        x, layer_stack, context, epsilon=EPSILON)
  with tf.variable_scope("rms_norm"):
    scale = mtf.get_variable(
        context.mesh, "scale", [model_dim],
        initializer=tf.ones_initializer(), dtype=context.variable_dtype)
  return _normalize(x, scale, split_dims(x.shape, layout, mesh_shape))


def _normalize(
    x: mtf.Tensor, scale: mtf.Tensor, parts: list[mtf.Dimension]
) -> mtf.Tensor:
  """The norm; `parts` are the dimensions over which tokens are split."""
  token_dims = x.shape.dims[:-1]

  def grad(op: mtf.Operation, dy: mtf.Tensor):
    # Its dimensions may come in another order.
    dy = mtf.broadcast(dy, op.outputs[0].shape)

    def gradients(*slices: tf.Tensor):
      dx, dscale = unit_rms_grad(*slices, EPSILON)
      return dx, tf.reshape(dscale, [*[1] * len(parts), -1])

    # Each processor sums over its tokens, then the sums are added up.
    dx, dscales = mtf.slicewise(
        gradients, [dy, x, scale],
        output_shape=[x.shape, mtf.Shape([*parts, *scale.shape.dims])],
        output_dtype=[x.dtype, scale.dtype], splittable_dims=token_dims,
        grad_function=0, name="rms_norm_gradients")
    return [dx, mtf.reduce_sum(dscales, output_shape=scale.shape)]

  return mtf.slicewise(
      lambda x, scale: unit_rms(x, scale, EPSILON), [x, scale],
      splittable_dims=token_dims, grad_function=grad, name="rms_norm")


def unit_rms(
    x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float) -> tf.Tensor:
  """Divides by the root of the mean square, times a scale.

  Args:
    x_TM: [..., d_model].
    scale_M: [d_model].
    epsilon: added to the mean.

  Returns:
    [..., d_model].
  """
  return x_TM * _inverse_rms(x_TM, epsilon) * scale_M


def unit_rms_grad(
    dy_TM: tf.Tensor, x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """The gradients of `unit_rms` from its inputs, which are at hand anyhow.

  Args:
    dy_TM: [..., d_model].
    x_TM: [..., d_model].
    scale_M: [d_model].
    epsilon: as in `unit_rms`.

  Returns:
    Those by x [..., d_model] and by the scale [d_model].
  """
  size = scale_M.shape.as_list()[0]
  dy, x = (tf.reshape(y, [-1, size]) for y in (dy_TM, x_TM))
  inverse = _inverse_rms(x, epsilon)
  products = dy * x
  # Both sums as matrices times a vector: read once, nothing written.
  dscale = tf.matmul(inverse, products, transpose_a=True)
  along = tf.matmul(products, scale_M[:, None])
  dx = (dy * scale_M - x * (along * tf.square(inverse) / size)) * inverse
  return tf.reshape(dx, tf.shape(x_TM)), tf.reshape(dscale, [size])


def _inverse_rms(x: tf.Tensor, epsilon: float) -> tf.Tensor:
  return tf.math.rsqrt(
      tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + epsilon)
