"""Draws which core holds which slice, as in Figure 9 of the paper."""

import math

import matplotlib
import mesh_tensorflow as mtf
import numpy as np

from switch_mtf.planning.plan import Plan

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

MOST = 32  # most cores drawn along one side


def draw(plan: Plan, path: str) -> None:
  """Draws the slices of weights, experts and tokens on the mesh.

  A square is a core. Cores of the same colour hold the same slice.

  Args:
    plan: plan of the run.
    path: path of the image; its suffix sets the format.
  """
  config = plan.configuration
  impl = mtf.MeshImpl(config.mesh_shape, config.layout_rules)
  panels = [
      (title, slices(impl, shape)) for title, shape in _shapes(plan).items()]
  figure, axes = plt.subplots(
      1, len(panels), figsize=(4 * len(panels), 4.4), squeeze=False)
  for axis, (title, numbers) in zip(axes[0], panels, strict=True):
    shown = numbers[:MOST, :MOST]
    axis.imshow(shown, cmap="turbo", vmin=0, vmax=max(numbers.max(), 1))
    axis.set_xticks(np.arange(-.5, shown.shape[1]), [])
    axis.set_yticks(np.arange(-.5, shown.shape[0]), [])
    axis.grid(color="white", linewidth=1)
    axis.set_title(f"{title}\n{len(np.unique(numbers)):,} different slices")
    if numbers.size <= 64:
      for (row, column), number in np.ndenumerate(numbers):
        axis.text(column, row, number, ha="center", va="center", color="white")
  axes_text = " x ".join(
      f"{dim.name} {dim.size}" for dim in config.mesh_shape.dims) or "one"
  cut = "" if max(panels[0][1].shape) <= MOST else f", first {MOST} per side"
  figure.suptitle(f"{config.mesh_shape.size:,} cores: {axes_text}{cut}")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _shapes(plan: Plan) -> dict[str, mtf.Shape]:
  """Returns title -> shape, for dense weights, expert weights and tokens."""
  shapes = {}
  for name, shape in plan.variables:
    if name.endswith("DenseReluDense/wi/kernel"):
      shapes.setdefault("dense feed-forward weights", shape)
    if "experts" in shape.dimension_names and "router" not in name:
      shapes.setdefault("experts' weights", shape)
  config = plan.configuration
  shapes["tokens"] = mtf.Shape([
      mtf.Dimension("batch", config.batch_size),
      mtf.Dimension("length", config.sequence_length["inputs"])])
  return shapes


def slices(impl: mtf.MeshImpl, shape: mtf.Shape) -> np.ndarray:
  """Returns the number of the slice of a tensor that each core holds.

  Args:
    impl: mesh implementation with the layout.
    shape: shape of the tensor.

  Returns:
    int [rows, columns]: one element per core. The axes are those of the mesh
      if it has two, of at most MOST cores each; else the array is as square as
      the number of cores allows.
  """
  begins = [tuple(impl.slice_begin(shape, core)) for core in range(impl.size)]
  number_of = {begin: i for i, begin in enumerate(dict.fromkeys(begins))}
  numbers = np.array([number_of[begin] for begin in begins])
  sizes = impl.shape.to_integer_list
  if len(sizes) == 2 and max(sizes) <= MOST:
    return numbers.reshape(sizes)
  columns = next(n for n in range(math.isqrt(impl.size), impl.size + 1)
                 if impl.size % n == 0)
  return numbers.reshape(-1, columns)
