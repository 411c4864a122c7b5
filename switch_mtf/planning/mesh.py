"""A mesh that lowers a graph for one of its processors and computes nothing."""

import dataclasses
from collections.abc import Callable

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow import simd_mesh_impl


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation of a step.

  Attributes:
    kind: "allreduce", "alltoall", "allconcat" or "shift".
    mesh_axes: names of the mesh axes along which processors communicate, in
      the order of the mesh.
    elements: number of elements that each processor sums or sends; for an
      allconcat, number of elements of its result. `lowering.counters` has the
      sum over all processors.
    bytes: bytes of these elements.
    in_loop: whether the collective is in the loop over microbatches.
  """

  kind: str
  mesh_axes: tuple[str, ...]
  elements: int
  bytes: int
  in_loop: bool


class PlanningMeshImpl(simd_mesh_impl.SimdMeshImpl):
  """A mesh that lowers to the graph of one processor and records collectives.

  Each tensor has one slice, as on TPU. Variables are placeholders that have the
  shape of a slice. Collectives return tensors of the right shape.

  Attributes:
    collectives: the graph's collectives, in order.
  """

  def __init__(self, shape: mtf.Shape, layout_rules: mtf.LayoutRules):
    super().__init__(shape, layout_rules)
    self.collectives: list[Collective] = []

  class LaidOutVariable:
    """A slice of a variable with a shape but no value."""

    def __init__(self, variable: mtf.Variable, mesh_impl: "PlanningMeshImpl"):
      self.laid_out_tensor = mesh_impl.LaidOutTensor([tf.placeholder(
          variable.slice_dtype, mesh_impl.slice_shape(variable.shape))])
      self.copy_master_to_slices = self.copy_slices_to_master = tf.group([])

    def assign_to_slices(
        self, unused_assign_fn: Callable, values: list[tf.Tensor],
        unused_to: list | None = None) -> tf.Operation:
      """Depends on the values, but assigns nothing; see SimdMeshImpl."""
      return tf.group(values)

  @property
  def pnum_tensor(self) -> tf.Tensor:
    """The number of the processor."""
    return tf.constant(0)

  def allreduce(self, x, mesh_axes, reduction_fn_string):
    """See mtf.MeshImpl."""
    if not mesh_axes:
      return x
    t = x.to_laid_out_tensor().one_slice
    self._note("allreduce", mesh_axes, t)
    return self.LaidOutTensor([_received(t)])

  def allconcat(self, x, mesh_axis, concat_axis, stack=False):
    """See mtf.MeshImpl."""
    t = x.to_laid_out_tensor().one_slice
    t = (tf.stack if stack else tf.concat)(
        [t] * self.shape[mesh_axis].size, concat_axis)
    self._note("allconcat", [mesh_axis], t)
    return self.LaidOutTensor([t])

  def alltoall(self, x, mesh_axis, split_axis, concat_axis):
    """See mtf.MeshImpl."""
    t = x.to_laid_out_tensor().one_slice
    self._note("alltoall", [mesh_axis], t)
    ways = self.shape[mesh_axis].size
    shape = t.shape.as_list()
    shape[split_axis] //= ways
    shape[concat_axis] *= ways
    return self.LaidOutTensor([_received(tf.reshape(t, shape))])

  def receive(self, x, mesh_axis, source_pcoord):
    """See mtf.MeshImpl."""
    t = x.to_laid_out_tensor().one_slice
    self._note("shift", [mesh_axis], t)
    return self.LaidOutTensor([_received(t)])

  def random(self, shape, tf_fn, kwargs):
    """See mtf.MeshImpl."""
    return self.LaidOutTensor([tf_fn(self.slice_shape(shape), **kwargs)])

  def slice(self, tf_tensor, tensor_shape):
    """Returns the first slice, since all are alike; see SimdMeshImpl."""
    if self.tensor_layout(tensor_shape).is_fully_replicated:
      return self.LaidOutTensor([tf_tensor])
    return self.LaidOutTensor([tf.slice(
        tf_tensor, [0] * tensor_shape.ndims, self.slice_shape(tensor_shape))])

  def export_to_tf_tensor(self, x, laid_out_x):
    """See mtf.MeshImpl."""
    t = laid_out_x.one_slice
    return tf.tile(t, [
        whole // part for whole, part in zip(
            x.shape.to_integer_list, t.shape.as_list(), strict=True)])

  def _note(self, kind: str, mesh_axes: list[int], t: tf.Tensor) -> None:
    """Records a collective that sums, sends or returns a slice `t`."""
    elements = t.shape.num_elements()
    self.collectives.append(Collective(
        kind, tuple(self.shape[axis].name for axis in sorted(mesh_axes)),
        elements, elements * t.dtype.size,
        tf.get_default_graph()._get_control_flow_context() is not None))


def _received(t: tf.Tensor) -> tf.Tensor:
  """Returns a copy of `t` in memory of its own, unlike tf.identity."""
  return tf.reverse(t, tf.zeros([0], tf.int32))
