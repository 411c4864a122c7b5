"""Questions to a mesh: is it of TPU cores, which axis splits a dimension."""

from switch_mtf import upstream  # noqa: F401  isort:skip

import mesh_tensorflow as mtf


def on_tpu(mesh: mtf.Mesh) -> bool:
  """Whether a mesh is one of TPU cores, where gathers are slow.

  Mesh-TF does not know its mesh implementation while the graph is built. What
  it does know: only on TPU (`SimdMeshImpl`) is a mesh made with a variable
  placer, and without one its placement is a device name.
  """
  return not isinstance(mesh.variable_placer_fn, str)


def mesh_axis(
    dim: mtf.Dimension,
    layout: mtf.LayoutRules | str | None,
    mesh_shape: mtf.Shape | str | None,
) -> tuple[int | None, int]:
  """The mesh axis that splits a dimension, and into how many parts.

  Args:
    dim: any dimension.
    layout: layout rules of the run, None for one processor.
    mesh_shape: mesh of the run, None for one processor.

  Returns:
    The axis, None if there is none, and 1 or its size.
  """
  if layout is None or mesh_shape is None:
    return None, 1
  mesh_shape = mtf.convert_to_shape(mesh_shape)
  axis = mtf.convert_to_layout_rules(layout).tensor_dimension_to_mesh_axis(
      dim, mesh_shape)
  return axis, 1 if axis is None else mesh_shape.dims[axis].size


def split_dims(
    shape: mtf.Shape,
    layout: mtf.LayoutRules | str | None,
    mesh_shape: mtf.Shape | str | None,
) -> list[mtf.Dimension]:
  """The dimensions of a shape that are split, each as large as it has parts.

  Args:
    shape: any shape.
    layout: layout rules of the run, None for one processor.
    mesh_shape: mesh of the run, None for one processor.

  Returns:
    Dimensions of the same names.
  """
  split = [(dim, *mesh_axis(dim, layout, mesh_shape)) for dim in shape.dims]
  return [mtf.Dimension(dim.name, ways)
          for dim, axis, ways in split if axis is not None]
