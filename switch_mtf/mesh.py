"""Questions to a mesh, and sums over its parts.

Is it a mesh of TPU cores? Which of its axes splits a dimension? `add_up` lets
each processor sum over the slices that it holds, then adds the sums up.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

from collections.abc import Callable, Sequence

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from switch_mtf.upstream.speed import gradients_of_slices


def on_tpu(mesh: mtf.Mesh) -> bool:
  """Returns whether a mesh is one of TPU cores, where gathers are slow.

  Mesh-TF does not know its mesh implementation while the graph is built, but
  only on TPU (`SimdMeshImpl`) is a mesh made with a variable placer. Elsewhere
  its placement is the name of a device.
  """
  return not isinstance(mesh.variable_placer_fn, str)


def mesh_axis(
    dim: mtf.Dimension,
    layout: mtf.LayoutRules | str | None,
    mesh_shape: mtf.Shape | str | None,
) -> tuple[int | None, int]:
  """Returns the mesh axis that splits a dimension, and into how many parts.

  Args:
    dim: any dimension.
    layout: layout rules of the run, None for one processor.
    mesh_shape: mesh of the run, None for one processor.

  Returns:
    The number of the axis and its size; None and 1 if no axis splits `dim`.
  """
  if layout is None or mesh_shape is None:
    return None, 1
  mesh_shape = mtf.convert_to_shape(mesh_shape)
  axis = mtf.convert_to_layout_rules(layout).tensor_dimension_to_mesh_axis(
      dim, mesh_shape)
  return axis, 1 if axis is None else mesh_shape.dims[axis].size


def add_up(
    fn: Callable[..., tf.Tensor | tuple[tf.Tensor, ...]],
    xs: Sequence[mtf.Tensor],
    shapes: Sequence[mtf.Shape],
    dtypes: Sequence[tf.DType] | None = None,
    name: str = "add_up",
) -> list[mtf.Tensor]:
  """Lets each processor sum over its slices, then adds the sums up.

  The sums are over the dimensions of xs[0] that a result lacks: `fn` sums over
  its slice of them, and an all-reduce over the mesh axes that split them does
  the rest. `mtf.slicewise` adds nothing up, and `mtf.einsum` makes more passes
  over memory.

  Args:
    fn: computes a processor's results from its slices of `xs`.
    xs: tensors.
    shapes: shapes of the results.
    dtypes: dtypes of the results; all that of xs[0] by default.
    name: name of the operation.

  Returns:
    The results.
  """
  dtypes = dtypes or [xs[0].dtype] * len(shapes)
  return _AddUp(fn, xs, shapes, dtypes, name).outputs


def add_up_gradients(op: mtf.Operation, *dys: mtf.Tensor) -> list[mtf.Tensor]:
  """Returns the gradients of an `mtf.slicewise`, for its `grad_function`.

  Upstream's own gradients do not add up: each processor would keep its part of
  the gradient of an input that several processors share.

  Args:
    op: the operation, with one output that has all dimensions that are split.
    *dys: the gradient of that output.
  """
  y, = op.outputs
  # The dimensions of dy may come in another order.
  dy = mtf.broadcast(*dys, y.shape)
  return add_up(
      gradients_of_slices(1), [y, dy, *op.inputs],
      [x.shape for x in op.inputs], [x.dtype for x in op.inputs],
      f"{op.name}_gradients")


class _AddUp(mtf.Operation):
  """The operation of `add_up`."""

  def __init__(self, fn, xs, shapes, dtypes, name):
    super().__init__(list(xs), name=name)
    self._fn = fn
    self._outputs = [
        mtf.Tensor(self, shape, dtype, index=i)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]

  def lower(self, lowering: mtf.Lowering) -> None:
    """See the base class."""
    mesh_impl = lowering.mesh_impl(self)
    shape = self.inputs[0].shape
    axes = mesh_impl.tensor_layout(shape).tensor_axis_to_mesh_axis
    ys = mesh_impl.slicewise(
        lambda *slices: tuple(tf.nest.flatten(self._fn(*slices))),
        *(lowering.tensors[x] for x in self.inputs))
    for y, output in zip(ys, self.outputs, strict=True):
      split = [axis for dim, axis in zip(shape.dims, axes, strict=True)
               if axis is not None and dim not in output.shape.dims]
      if split:
        lowering.add_counter(f"allreduce/{split}/add_up",
                             mesh_impl.laid_out_size(output.shape))
        y = mesh_impl.allreduce(y, split, "SUM")
      lowering.set_tensor_lowering(output, y)
