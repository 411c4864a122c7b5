"""Adafactor in fewer passes over memory."""

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow import optimize

from switch_mtf import kernels


@gin.configurable
class FewPassAdafactor(optimize.AdafactorOptimizer):
  """Upstream's Adafactor: same options, slots and numbers in fewer passes.

  With many experts a step is mostly this. What is left out: the update's own
  squares to clip it, which follow from the gradient's and the factors; what
  would be written to memory between two operations, where `kernels` goes part
  by part.

  Shazeer and Stern, Adafactor, https://arxiv.org/abs/1804.04235, algorithm 4.
  """

  def apply_grad(
      self, grad: mtf.Tensor | None, var: mtf.Variable
  ) -> list[mtf.Operation]:
    """See the base class.

    Args:
      grad: of the loss by `var`; None where `var` does not matter.
      var: what to update.

    Returns:
      The updates.
    """
    dims = None if grad is None else self._factored_dims(var.shape)
    if not dims or self._beta1 or self._stacked_dim_names:
      return super().apply_grad(grad, var)
    row_shape, col_shape = var.shape - dims[0], var.shape - dims[1]
    slots = [
        mtf.get_variable(
            var.mesh, f"{var.name}_slot_{name}", shape,
            initializer=tf.zeros_initializer(), trainable=False)
        for name, shape in (("vr", row_shape), ("vc", col_shape))]
    with tf.variable_scope(f"{var.name}/adafactor"):
      grad = mtf.to_float(grad)
      new_row, new_col = (self._averaged(slot, grad) for slot in slots)
      row_factor = mtf.reduce_mean(new_row, reduced_dim=dims[1]) / new_row
      col_factor = mtf.reciprocal(new_col)
      scale = self._scale(var) / self._clipping(grad, row_factor, col_factor)
      update = _product(
          grad, mtf.sqrt(row_factor) * scale, mtf.sqrt(col_factor))
      return [*(mtf.assign(*pair) for pair in zip(
          slots, (new_row, new_col), strict=True)),
              mtf.assign_sub(var, update)]

  def _averaged(self, slot: mtf.Variable, grad: mtf.Tensor) -> mtf.Tensor:
    """The new value of an accumulator of squared gradients."""
    entries = grad.shape.size // slot.shape.size
    mean = mtf.einsum(
        [grad, grad], output_shape=slot.shape) / entries + self._epsilon1
    return slot * self._decay_rate + mean * (1.0 - self._decay_rate)

  def _scale(self, var: mtf.Variable) -> mtf.Tensor | tf.Tensor:
    """The learning rate, times the variable's own scale."""
    if not self._multiply_by_parameter_scale or any(
        name in var.name for name in self._exclude_from_parameter_scale):
      return self._learning_rate
    value = mtf.to_float(var.value)
    mean = mtf.einsum([value, value], output_shape=[]) / var.shape.size
    return mtf.maximum(mtf.sqrt(mean), self._epsilon2) * self._learning_rate

  def _clipping(
      self, grad: mtf.Tensor, row_factor: mtf.Tensor, col_factor: mtf.Tensor
  ) -> mtf.Tensor | float:
    """What the update is divided by, from the squares of its factors."""
    if self._clipping_threshold is None:
      return 1.0
    rows = mtf.einsum(
        [grad, grad, col_factor], output_shape=row_factor.shape)
    mean = mtf.reduce_sum(rows * row_factor) / grad.shape.size
    return mtf.maximum(1.0, mtf.sqrt(mean) / self._clipping_threshold)


def _product(x: mtf.Tensor, *factors: mtf.Tensor) -> mtf.Tensor:
  """X times factors that lack some of its dimensions."""
  filled = [
      mtf.reshape(f, [d if d in f.shape.dims else mtf.Dimension(f"one_{i}", 1)
                      for i, d in enumerate(x.shape.dims)]) for f in factors]
  return mtf.slicewise(
      kernels.product, [x, *filled], splittable_dims=x.shape.dims,
      grad_function=0, name="product")
