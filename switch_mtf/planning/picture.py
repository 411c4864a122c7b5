"""Which core holds which slice, drawn as in Figure 9 of the paper."""

import math

import matplotlib
import mesh_tensorflow as mtf
import numpy as np

from switch_mtf.planning.plan import Plan

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

MOST = 32  # cores drawn along one side


def draw(plan: Plan, path: str) -> None:
  """Draws the mesh: slices of weights, of experts and of tokens.

  A square is a core. Squares of one colour hold the same slice.

  Args:
    plan: any.
    path: of the image; its ending says the format.
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
  cut = "" if max(panels[0][1].shape) <= MOST else f", the first {MOST} a side"
  figure.suptitle(f"{config.mesh_shape.size:,} cores: {axes_text}{cut}")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _shapes(plan: Plan) -> dict[str, mtf.Shape]:
  """What is drawn: a dense layer's weights, an expert layer's, the tokens."""
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
  """The number of the slice that each core has, cores in rows and columns.

  Args:
    impl: mesh and layout.
    shape: of the tensor.

  Returns:
    Integers: an axis a mesh axis if the mesh has two, else nearly square.
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
