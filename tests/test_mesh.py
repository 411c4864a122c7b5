"""Sums over the parts of a mesh, against NumPy."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, lower

from switch_mtf.mesh import add_up, add_up_gradients, mesh_axis, on_tpu

ROWS, COLUMNS = mtf.Dimension("rows", 4), mtf.Dimension("columns", 6)
X = np.random.default_rng(0).normal(size=[4, 6]).astype(np.float32)
MESHES = [("", ""), ("a:2", "rows:a"), ("a:2", "columns:a"),
          ("a:2;b:3", "rows:a;columns:b"), ("a:2;b:2", "rows:a")]


@pytest.mark.parametrize("mesh_shape, layout", MESHES)
def test_sums_are_added_up(mesh_shape, layout, new_mesh):
  mesh = new_mesh()
  x = constant(mesh, X, [ROWS, COLUMNS])

  def sums(x):
    return (tf.reduce_sum(x), tf.reduce_sum(x, axis=0),
            tf.cast(tf.reduce_sum(x, axis=1), tf.bfloat16), 2.0 * x)

  found = add_up(
      sums, [x], [mtf.Shape([]), mtf.Shape([COLUMNS]), mtf.Shape([ROWS]),
                  x.shape],
      [tf.float32, tf.float32, tf.bfloat16, tf.float32])
  assert [t.dtype for t in found] == [
      tf.float32, tf.float32, tf.bfloat16, tf.float32]
  found[2] = mtf.to_float(found[2])
  total, by_column, by_row, doubled = evaluate(
      lower(mesh, mesh_shape, layout), found)
  np.testing.assert_allclose(total, X.sum(), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(by_column, X.sum(0), rtol=1e-5, atol=1e-5)
  # bfloat16 keeps 8 bits, of each part of a sum.
  np.testing.assert_allclose(by_row, X.sum(1), rtol=2e-2, atol=4e-2)
  np.testing.assert_array_equal(doubled, 2 * X)


def test_each_sum_is_one_all_reduce_of_its_size(new_mesh):
  mesh = new_mesh()
  x = constant(mesh, X, [ROWS, COLUMNS])
  total, by_column = add_up(
      lambda x: (tf.reduce_sum(x), tf.reduce_sum(x, axis=0)), [x],
      [mtf.Shape([]), mtf.Shape([COLUMNS])])
  lowering = lower(mesh, "a:2;b:3", "rows:a;columns:b")
  lowering.export_to_tf_tensor(total)
  # 6 processors have a number each; 6 columns on 3 of them, twice.
  assert [c for c in lowering.counters if c[0].startswith("allreduce")] == [
      ("allreduce/[0, 1]/add_up", 6), ("allreduce/[0]/add_up", 12)]


@pytest.mark.parametrize("mesh_shape, layout", MESHES)
def test_gradient_of_an_input_that_processors_share(
    mesh_shape, layout, new_mesh):
  # y = x * scale, scale of each column: d scale = sum over rows of x * dy.
  mesh = new_mesh()
  x = constant(mesh, X, [ROWS, COLUMNS])
  scale = constant(mesh, X[0], [COLUMNS])
  y = mtf.slicewise(
      tf.multiply, [x, scale], splittable_dims=[ROWS, COLUMNS],
      grad_function=add_up_gradients)
  found = mtf.gradients([y], [x, scale], [2.0 * x])
  dx, dscale = evaluate(lower(mesh, mesh_shape, layout), found)
  np.testing.assert_allclose(dx, 2 * X * X[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dscale, (2 * X * X).sum(0), rtol=1e-5, atol=1e-5)


def test_gradient_in_another_order(new_mesh):
  mesh = new_mesh()
  square = [mtf.Dimension("rows", 4), mtf.Dimension("columns", 4)]
  x = constant(mesh, X[:, :4], square)
  y = mtf.slicewise(lambda x: 3.0 * x, [x], splittable_dims=square,
                    grad_function=add_up_gradients)
  found = mtf.gradients([y], [x], [constant(mesh, X[:, :4].T, square[::-1])])
  dx, = evaluate(lower(mesh), found)
  np.testing.assert_allclose(dx, 3 * X[:, :4], rtol=1e-5)


def test_axis_that_splits_a_dimension():
  assert mesh_axis(ROWS, None, None) == (None, 1)
  assert mesh_axis(ROWS, "rows:b", "a:2;b:3") == (1, 3)
  assert mesh_axis(COLUMNS, "rows:b", "a:2;b:3") == (None, 1)


def test_tpu_is_known_by_its_placer(new_mesh):
  placer = types.SimpleNamespace(device_function=lambda op: "")
  assert not on_tpu(new_mesh())
  assert on_tpu(mtf.Mesh(mtf.Graph(), "mesh", placer))
