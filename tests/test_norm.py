"""The norm, against upstream's and by hand."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import close, constant, evaluate, lower, make_context, run
from mesh_tensorflow.transformer import transformer

from switch_mtf.kernels import norm
from switch_mtf.kernels.norm import rms_norm

TOKENS = mtf.convert_to_shape("outer_batch:2,batch:4,length:5").dims
MODEL = mtf.Dimension("d_model", 6)
# Mesh, layout, and whether upstream's is what must be used.
MESHES = {
    "one": ("", "", False), "one processor, an axis": ("a:1", "batch:a", False),
    "batch": ("a:2", "batch:a", False),
    "both": ("a:2;b:2", "outer_batch:a;batch:b", False),
    "length": ("a:5", "length:a", False), "idle": ("a:2", "heads:a", False),
    "d_model": ("a:2", "d_model:a", True),
    "d_model and batch": ("a:2;b:2", "batch:a;d_model:b", True)}


def normalize(norm, mesh_shape="", layout="", dims=(*TOKENS, MODEL)):
  """The result, both gradients; whether it was one operation."""
  with tf.Graph().as_default():
    mesh, rng = mtf.Mesh(mtf.Graph(), "mesh"), np.random.default_rng(0)
    shape = mtf.Shape(dims)
    x, dy = (constant(mesh, rng.normal(size=shape.to_integer_list).astype(
        np.float32), dims) for _ in range(2))
    context = make_context(
        mesh, mesh_shape=mtf.convert_to_shape(mesh_shape),
        layout=mtf.convert_to_layout_rules(layout))
    context.model.model_dim, context.model.ensemble_dims = MODEL, []
    y = norm(x, None, context)
    variable, = mesh.graph.trainable_variables
    grads = mtf.gradients(
        [mtf.reduce_sum(y * dy)], [x, variable.outputs[0]])
    whole = any("rms_norm_gradients" in op.name
                for op in mesh.graph.operations)
    return evaluate(lower(mesh, mesh_shape, layout), [y, *grads], {
        "rms_norm/scale": rng.normal(size=MODEL.size)}), whole


@pytest.mark.parametrize("mesh", MESHES)
def test_same_as_upstream(mesh):
  mesh_shape, layout, falls_back = MESHES[mesh]
  expected, _ = normalize(transformer.sublayer_rms_norm)
  found, whole = normalize(rms_norm, mesh_shape, layout)
  assert whole != falls_back
  for ours, value in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-5)


def test_of_one_token_each_as_in_decoding():
  dims = (*TOKENS[:2], MODEL)
  found, whole = normalize(rms_norm, dims=dims)
  assert whole
  expected, _ = normalize(transformer.sublayer_rms_norm, dims=dims)
  for ours, value in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-5)


def test_by_hand():
  # The squares of (3, 4, 0, 0, 0, 0) have a mean of 25 / 6: 3 and 4 become
  # 3 sqrt(6) / 5 and 4 sqrt(6) / 5.
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  context = make_context(mesh)
  context.model.model_dim, context.model.ensemble_dims = MODEL, []
  x = constant(mesh, np.float32([[3, 4, 0, 0, 0, 0]]),
               [mtf.Dimension("batch", 1), MODEL])
  y = rms_norm(x, None, context)
  y, = evaluate(lower(mesh), [y], {"rms_norm/scale": np.ones(6)})
  np.testing.assert_allclose(
      y, [[0.6 * 6**.5, 0.8 * 6**.5, 0, 0, 0, 0]], rtol=1e-5)


def test_gradient_in_another_order():
  # A maximum passes on gradients in the order of its first argument.
  def loss_gradient(norm):
    with tf.Graph().as_default():
      mesh, rng = mtf.Mesh(mtf.Graph(), "mesh"), np.random.default_rng(0)
      dims = [mtf.Dimension("a", 3), mtf.Dimension("b", 2), MODEL]
      other = [dims[1], dims[2], dims[0]]
      x, w = (constant(mesh, rng.normal(size=mtf.Shape(d).to_integer_list)
                       .astype(np.float32), d) for d in (dims, other))
      context = make_context(mesh)
      context.model.model_dim, context.model.ensemble_dims = MODEL, []
      y = norm(x, None, context)
      dx, = mtf.gradients(
          [mtf.reduce_sum(mtf.square(mtf.maximum(w, y)))], [x])
      dx = mtf.transpose(dx, x.shape)
      return evaluate(
          lower(mesh), [dx], {"rms_norm/scale": np.ones(MODEL.size)})[0]

  np.testing.assert_allclose(
      loss_gradient(rms_norm), loss_gradient(transformer.sublayer_rms_norm),
      rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [[7, 6], [2, 5, 6], [2, 3, 2, 6]])
def test_rms_norm(shape):
  rng = np.random.default_rng(0)
  x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
  scale = rng.normal(size=6).astype(np.float32)
  scale[2] = 0
  x_t, scale_t = tf.constant(x), tf.constant(scale)
  inverse = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
  y = norm.unit_rms(x_t, scale_t, 0.1)
  close(run(y), x * inverse * scale)
  expected = tf.gradients(y, [x_t, scale_t], tf.constant(dy))
  for ours, value in zip(run(norm.unit_rms_grad(
      tf.constant(dy), x_t, scale_t, 0.1)), run(expected), strict=True):
    close(ours, value)
