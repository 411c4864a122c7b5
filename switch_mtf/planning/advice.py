"""Finds runs near one that does not fit, and plans each before it is advised.

An estimate from the graph of another run is not enough: microbatches need a
sum of gradients, a batch must divide, and another layout has other collectives.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import mesh_tensorflow as mtf

from switch_mtf import gin_files
from switch_mtf.mesh import mesh_axis
from switch_mtf.planning import fit
from switch_mtf.planning.configuration import ROOT
from switch_mtf.planning.plan import Plan, plan

MOST_PLANNED = 6  # graphs for one piece of advice; each takes some ten seconds
MICROBATCH = "serialize_num_microbatches.tokens_per_microbatch_per_replica"
# Feature whose tokens a stack's groups divide.
STACKS = {"encoder": "inputs", "decoder": "targets"}


@dataclasses.dataclass(frozen=True)
class Change:
  """A change of a run.

  Attributes:
    files: gin files that come after the run's own.
    params: bindings that come after the run's own.
    mesh_shape: mesh in place of the run's own, or None.
  """

  files: tuple[str, ...] = ()
  params: tuple[str, ...] = ()
  mesh_shape: str | None = None

  def __str__(self) -> str:
    """Returns the flags of the change."""
    return " ".join([
        *(f"--gin_file={path}" for path in self.files),
        *([f"--mesh_shape={self.mesh_shape}"] if self.mesh_shape else []),
        *(f'--gin_param="{param}"' for param in self.params)])


class _Planner:
  """Plans changed runs, a limited number of them."""

  def __init__(self, device: str, paths: Sequence[str], params: Sequence[str],
               mesh_shape: str | None):
    self._device, self._mesh_shape = device, mesh_shape
    self._paths, self._params = list(paths), list(params)
    self.planned = 0

  @property
  def may_go_on(self) -> bool:
    """Whether another run may be planned."""
    return self.planned < MOST_PLANNED

  def plan(self, change: Change) -> Plan | None:
    """Returns the plan of a changed run, None if it could not start."""
    self.planned += 1
    print(f"planning: the run does not fit; planning with {change} "
          f"({self.planned} of at most {MOST_PLANNED})", file=sys.stderr,
          flush=True)
    try:
      return plan(
          [*self._paths, *change.files], [*self._params, *change.params],
          device=self._device,
          mesh_shape=change.mesh_shape or (
              None if change.files else self._mesh_shape))
    except ValueError:  # such as groups that do not divide the tokens
      return None


def checked(
    found: Plan, paths: Sequence[str], params: Sequence[str],
    mesh_shape: str | None,
) -> Plan:
  """Returns a plan whose advice has been planned.

  Args:
    found: plan of a run.
    paths: gin files of the run.
    params: bindings of the run that override its files.
    mesh_shape: mesh that replaces that of the files, or None.

  Returns:
    The plan itself if the run fits; else the plan with advice that fits.
  """
  if found.advice.fits:
    return found
  planner = _Planner(found.device.name, paths, params, mesh_shape)
  changes, meshes, largest = [], [], 0
  for change, at_once in _with_microbatches(planner, found, Change(), tries=2):
    changes.append(change)
    largest = at_once * fit.batch_ways(found.configuration)
  for layout in _layouts(found)[:0 if changes else 2]:
    change = _that_fits(planner, found, Change(files=(layout,)))
    if change:
      changes.append(change)
      break
  for mesh in _meshes(found):
    change = planner.may_go_on and _that_fits(
        planner, found, Change(mesh_shape=mesh))
    if change:
      changes.append(change)
      meshes.append(mesh)
      break
  return dataclasses.replace(found, advice=fit.Advice(
      False, largest, meshes, [str(change) for change in changes],
      planner.planned))


def _that_fits(planner: _Planner, found: Plan, change: Change) -> Change | None:
  """Returns a change that fits, with smaller microbatches if need be."""
  if not planner.may_go_on:
    return None
  changed = planner.plan(change)
  if changed is None:
    shape = mtf.convert_to_shape(change.mesh_shape) if (
        change.mesh_shape) else found.configuration.mesh_shape
    groups = _groups(found, _at_once_on(found, shape))
    if not groups or not planner.may_go_on:
      return None
    change = dataclasses.replace(change, params=groups)
    changed = planner.plan(change)
  if changed is None or changed.advice.fits:
    return changed and change
  if change.mesh_shape:
    return None
  return next((smaller for smaller, _ in _with_microbatches(
      planner, changed, change, tries=1)), None)


def _with_microbatches(
    planner: _Planner, found: Plan, change: Change, tries: int
) -> Iterator[tuple[Change, int]]:
  """Yields the change with microbatches that fit, if there are any.

  Args:
    planner: planner of changed runs.
    found: plan of the changed run, which does not fit.
    change: change of the run.
    tries: number of sizes that are planned.

  Yields:
    The change, and the sequences of a processor in one microbatch.
  """
  config, estimate = found.configuration, found
  ways = fit.batch_ways(config)
  whole, most = config.batch_size // ways, int(fit.at_once(config)) - 1
  for _ in range(tries):
    most = min(most, estimate.advice.largest_batch // ways)
    if most < 1 or not planner.may_go_on:
      return
    most = max(n for n in range(1, most + 1) if whole % n == 0)
    tokens = most * max(config.sequence_length.values())
    smaller = dataclasses.replace(change, params=(
        f"{MICROBATCH} = {tokens}", *_groups(found, most)))
    estimate = planner.plan(smaller)
    if estimate is None:
      return
    if estimate.advice.fits:
      yield smaller, most
      return
    most -= 1


def _groups(found: Plan, at_once: int) -> tuple[str, ...]:
  """Returns bindings of groups that divide the tokens of a processor.

  Args:
    found: plan of a run.
    at_once: sequences of a processor in one microbatch.
  """
  bindings = []
  for stack, capacity in found.capacity.items():
    tokens = at_once * found.configuration.sequence_length.get(
        STACKS[stack], 0)
    if tokens and tokens % capacity.group_size:
      size = max(n for n in range(1, min(capacity.group_size, tokens) + 1)
                 if tokens % n == 0)
      bindings.append(f"{stack}/SwitchFFN.group_size = {size}")
  return tuple(bindings)


def _at_once_on(found: Plan, mesh: mtf.Shape) -> int:
  """Returns the sequences of a processor in one microbatch on a mesh."""
  config = found.configuration
  return int(min(fit.at_once(config),
                 config.batch_size / fit.batch_ways(config, mesh)))


def _meshes(found: Plan) -> list[str]:
  """Returns larger meshes that should fit, and twice these, smallest first."""
  shapes = [mtf.convert_to_shape(mesh) for mesh in found.advice.meshes]
  before = found.configuration.mesh_shape
  for shape in list(shapes):
    dims = [mtf.Dimension(dim.name, dim.size if dim in before.dims
                          else 2 * dim.size) for dim in shape.dims]
    if all(dim.size <= fit.LARGEST_AXIS for dim in dims):
      shapes.append(mtf.Shape(dims))
  return [fit.written(shape) for shape in sorted(
      shapes, key=lambda shape: shape.size)]


def _layouts(found: Plan) -> list[str]:
  """Returns layouts of as many processors whose weights fit, best first."""
  before = found.configuration
  if before.mesh_shape.size == 1:
    return []
  kind = {"tpu": "v3", "cpu": "cpu"}.get(found.device.name[:3], "gpu")
  room = fit.room(found.device, before.mesh_shape.size)
  weights = _slices(found, before.mesh_shape, before.layout_rules)
  fitting = []
  for path in sorted((ROOT / "gin" / "layouts").glob(f"{kind}_*.gin")):
    if "float" in path.stem or "cluster" in path.stem:
      continue  # another precision, or several machines
    name = path.relative_to(ROOT).as_posix()
    bindings = gin_files.read([name], [], [str(ROOT)])
    mesh = mtf.convert_to_shape(
        gin_files.setting(bindings, "run.mesh_shape", "")[0])
    rules = mtf.convert_to_layout_rules(
        gin_files.setting(bindings, "run.layout_rules", "")[0])
    part = (_slices(found, mesh, rules)
            if mesh.size == before.mesh_shape.size else None)
    if part is None or part >= weights:  # no less than now
      continue
    needed = (found.memory.standing + found.memory.gradients) * part / weights
    if needed < room:
      _, ways = mesh_axis(
          mtf.Dimension("batch", before.batch_size), rules, mesh)
      fitting.append((-ways, needed, name))  # fewer tokens a processor first
  return [name for *_, name in sorted(fitting)]


def _slices(
    found: Plan, mesh: mtf.Shape, rules: mtf.LayoutRules) -> int | None:
  """Returns the weights of one processor; None if they cannot be split so."""
  impl = mtf.MeshImpl(mesh, rules)
  try:
    return sum(impl.slice_size(shape) for _, shape in found.variables)
  except ValueError:  # a mesh axis does not divide a dimension
    return None
