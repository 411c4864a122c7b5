"""T5's layer norm in fewer passes over memory and fewer operations."""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf import kernels
from switch_mtf.dims import mesh_axis, on_tpu, split_dims

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
      dx, dscale = kernels.rms_norm_gradients(*slices, EPSILON)
      return dx, tf.reshape(dscale, [*[1] * len(parts), -1])

    # Each processor sums over its tokens, then the sums are added up.
    dx, dscales = mtf.slicewise(
        gradients, [dy, x, scale],
        output_shape=[x.shape, mtf.Shape([*parts, *scale.shape.dims])],
        output_dtype=[x.dtype, scale.dtype], splittable_dims=token_dims,
        grad_function=0, name="rms_norm_gradients")
    return [dx, mtf.reduce_sum(dscales, output_shape=scale.shape)]

  return mtf.slicewise(
      lambda x, scale: kernels.rms_norm(x, scale, EPSILON), [x, scale],
      splittable_dims=token_dims, grad_function=grad, name="rms_norm")
