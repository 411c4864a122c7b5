"""Says in words which mesh axis does not fit which dimension."""

import re

import mesh_tensorflow as mtf

from switch_mtf.dims import legal_divisors


def explain(
    error: Exception, mesh_shape: mtf.Shape, layout_rules: mtf.LayoutRules
) -> ValueError | None:
  """A better error for a mesh that does not fit a tensor, or None."""
  found = re.search(
      r"(not divisible by mesh dimension size|may not map to the same Mesh).*"
      r"tensor_shape=Shape\[(.*?)\]", str(error), re.DOTALL)
  if not found:
    return None
  dims = [mtf.Dimension(name, int(size)) for name, size in re.findall(
      r"(\w+)=(\d+)", found.group(2))]
  axes = [layout_rules.tensor_dimension_to_mesh_axis(dim, mesh_shape)
          for dim in dims]
  split = [(dim, mesh_shape.dims[axis])
           for dim, axis in zip(dims, axes, strict=True) if axis is not None]
  for number, (dim, ways) in enumerate(split):
    if dim.size % ways.size:
      return _undivided(dim, ways)
    for other, other_ways in split[:number]:
      if other_ways == ways:
        return ValueError(
            "run_t5: dimensions of one tensor must be split by different mesh "
            f"axes, with dimensions={other.name}, {dim.name}, axis={ways.name}."
            " Change utils.run.layout_rules.")
  return None


def explain_axis(error: Exception) -> ValueError | None:
  """A better error of an axis that T5 finds not to divide, or None."""
  found = re.match(
      r"Mesh dimension \((\d+)\) must divide tensor dimension "
      r"\(Dimension\(name='(\w+)', size=(\d+)\)", str(error))
  if not found:
    return None
  ways, name, size = found.groups()
  return _undivided(mtf.Dimension(name, int(size)),
                    mtf.Dimension(f"that of {name}", int(ways)))


def _undivided(dim: mtf.Dimension, ways: mtf.Dimension) -> ValueError:
  """The error for a mesh axis that does not divide a dimension."""
  below = dim.size - dim.size % ways.size
  sizes = [str(s) for s in (below, below + ways.size) if s]
  axes = [str(d) for d in legal_divisors(dim.size, ways.size)]
  return ValueError(
      "run_t5: each mesh axis must divide the dimension that it splits, with "
      f"dimension {dim.name}={dim.size}, mesh axis {ways.name}={ways.size}. "
      f"Give {dim.name} the size {' or '.join(sizes)}, or {ways.name} one of "
      f"{', '.join(axes)} in utils.run.mesh_shape, or take {dim.name} out of "
      "utils.run.layout_rules.")
