"""What upstream.speed changes in the making of graphs, not in their numbers."""

from unittest import mock

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import constant, evaluate, lower
from tensorflow.python.autograph.pyct import transpiler


def test_packing_is_not_translated():
  def pack(function):
    data = tf.data.Dataset.from_tensors(
        {"inputs": tf.range(2, 9), "targets": tf.range(2, 6)}).repeat(3)
    # AutoGraph goes on without what it cannot translate.
    with mock.patch.object(
        transpiler.PyToPy, "transform_function",
        side_effect=AssertionError) as translate:
      function(data, {"inputs": 16, "targets": 8}, pack=True,
               feature_keys=("inputs", "targets"), ensure_eos=False)
    return translate.called

  from mesh_tensorflow.transformer import dataset
  assert pack(dataset.pack_or_pad.__wrapped__)
  assert not pack(dataset.pack_or_pad)


def test_a_wrong_type_is_named_with_those_that_may_be():
  with tf.Graph().as_default(), pytest.raises(TypeError, match=(
      "'x' has DataType string not in list of allowed values: bfloat16, ")):
    tf.math.sqrt(tf.constant("text"))


@pytest.mark.parametrize("given, wanted, transposes", [
    ("ac", "abc", 0), ("b", "abc", 0), ("", "ab", 0), ("abc", "abc", 0),
    ("ca", "abc", 1), ("cba", "abc", 1)])
def test_dimensions_are_added_where_they_belong(given, wanted, transposes):
  # As numpy's einsum has it, with 1 for each dimension that is new.
  sizes = {"a": 2, "b": 3, "c": 4}
  x = np.arange(np.prod([sizes[d] for d in given], dtype=int)).reshape(
      [sizes[d] for d in given])
  shapes = [mtf.Shape([mtf.Dimension(d, sizes[d]) for d in names])
            for names in (given, wanted)]
  with tf.Graph().as_default() as graph, tf.Session() as session:
    found = session.run(mtf.ops._expand_dims(tf.constant(x), *shapes))
    made = [op.type for op in graph.get_operations()]
  kept = "".join(d for d in wanted if d in given)
  expected = np.einsum(f"{given}->{kept}", x)
  if given:
    expected = expected.reshape(
        [sizes[d] if d in given else 1 for d in wanted])
  np.testing.assert_array_equal(found, expected)
  assert made.count("Transpose") == transposes


def test_dimensions_are_never_lost():
  a, b = mtf.Dimension("a", 2), mtf.Dimension("b", 3)
  with pytest.raises(ValueError):
    mtf.ops._expand_dims(tf.zeros([2, 3]), mtf.Shape([a, b]), mtf.Shape([a]))


def test_relu_gradient_in_another_order():
  # By hand: the loss is the sum of squares of max(w, relu(x)) with w = 1/2, so
  # its gradient is 2 x where x > 1/2. The maximum has w's order of dimensions.
  mesh, a, b = mtf.Mesh(mtf.Graph(), "mesh"), *(
      mtf.Dimension(name, 2) for name in "ab")
  x = constant(mesh, np.float32([[1, -1], [2, 3]]), [a, b])
  w = constant(mesh, np.float32([[.5, .5], [.5, .5]]), [b, a])
  dx, = mtf.gradients(
      [mtf.reduce_sum(mtf.square(mtf.maximum(w, mtf.relu(x))))], [x])
  dx = mtf.transpose(dx, mtf.Shape([a, b]))
  found, = evaluate(lower(mesh), [dx])
  np.testing.assert_array_equal(found, [[2, 0], [4, 6]])


@pytest.mark.parametrize("mesh_shape", ["", "a:2"])
def test_relu_has_the_gradient_of_its_output(mesh_shape):
  mesh, dims = mtf.Mesh(mtf.Graph(), "mesh"), [mtf.Dimension("a", 4)]
  x = constant(mesh, np.float32([-1, 0, 2, 3]), dims)
  dx, = mtf.gradients([mtf.reduce_sum(mtf.relu(x) * constant(
      mesh, np.float32([5, 6, 7, 8]), dims))], [x])
  lowering = lower(mesh, mesh_shape, "a:a" if mesh_shape else "")
  found, = evaluate(lowering, [dx])
  np.testing.assert_array_equal(found, [0, 0, 7, 8])
  kinds = {op.type for op in tf.get_default_graph().get_operations()}
  assert "ReluGrad" in kinds and "Greater" not in kinds


def test_gradients_are_computed_where_their_slices_are():
  # d of two outputs, x * y and its sin, by hand: dx = y (1 + cos(x y)) and
  # dy = x (1 + cos(x y)); with a custom gradient in between that doubles them.
  @tf.custom_gradient
  def same(x):
    return tf.identity(x), lambda dy: 2.0 * dy

  def fn(x, y):
    return same(x * y), tf.sin(same(x * y))

  mesh, dim = mtf.Mesh(mtf.Graph(), "mesh"), mtf.Dimension("a", 2)
  values = np.float32([1, 2]), np.float32([3, 5])
  x, y = (constant(mesh, value, [dim]) for value in values)
  both = mtf.slicewise(fn, [x, y], output_shape=[x.shape] * 2,
                       output_dtype=[tf.float32] * 2, splittable_dims=[dim])
  gradients = mtf.gradients([mtf.reduce_sum(mtf.add_n(both))], [x, y])
  found = evaluate(lower(mesh, "a:2", "a:a"), gradients)
  doubled = 2 * (1 + np.cos(values[0] * values[1]))
  np.testing.assert_allclose(
      found, [values[1] * doubled, values[0] * doubled], rtol=1e-5)
  devices = [f"/job:worker/task:{task}/device:CPU:0" for task in range(2)]
  before = set(tf.get_default_graph().get_operations())
  mtf.Lowering(mesh.graph, {
      mesh: mtf.placement_mesh_impl.PlacementMeshImpl("a:2", "a:a", devices)})
  made = [op for op in tf.get_default_graph().get_operations()
          if op not in before and "generic_grad" in op.name]
  for device in devices:
    assert any(op.type == "Cos" and op.device == device for op in made)
  assert {op.device for op in made} == set(devices)
