import switch_mtf.compat  # noqa: F401  isort:skip  (before mesh_tensorflow)

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.layers import summaries


@pytest.fixture(autouse=True)
def fresh_graph():
  """Gives every test a TensorFlow graph of its own."""
  with tf.Graph().as_default():
    yield


@pytest.fixture
def new_mesh():
  """Makes a Mesh-TF graph with one mesh."""
  return lambda: mtf.Mesh(mtf.Graph(), "mesh")


def make_context(
    mesh, *, mode="train", layout=None, mesh_shape=None, nonpadding=None):
  """What a layer reads of a transformer.Context."""
  dtype = mtf.VariableDType(tf.float32, tf.float32, tf.float32)
  return types.SimpleNamespace(
      mesh=mesh, mode=mode, train=mode == "train", losses=[],
      num_microbatches=1, nonpadding=nonpadding, variable_dtype=dtype,
      activation_dtype=tf.float32,
      model=types.SimpleNamespace(layout=layout, mesh_shape=mesh_shape))


def lower(mesh, mesh_shape="", layout=""):
  """Lowers the graph of `mesh`; the mesh's processors share this CPU."""
  mesh_shape = mtf.convert_to_shape(mesh_shape)
  impl = mtf.placement_mesh_impl.PlacementMeshImpl(
      mesh_shape, mtf.convert_to_layout_rules(layout), [""] * mesh_shape.size)
  return mtf.Lowering(mesh.graph, {mesh: impl})


def evaluate(lowering, tensors, weights=None, feed=None):
  """Runs mtf tensors (None stays None) with given weights, as arrays.

  `weights` maps the end of a variable's name to its value; every variable must
  be named.
  """
  exported = [None if t is None else lowering.export_to_tf_tensor(t)
              for t in tensors]
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for variable in tf.global_variables() if weights is not None else []:
      value, = [v for k, v in weights.items() if variable.op.name.endswith(k)]
      variable.load(value, session)
    session.run(lowering.copy_masters_to_slices())
    found = session.run([t for t in exported if t is not None], feed)
  found = iter(found)
  return [None if t is None else next(found) for t in exported]


def recorded_metrics():
  """Name to tf.Tensor of what the layers recorded in this graph."""
  return dict(tf.get_collection(summaries.METRICS_COLLECTION))


def random_weights(rng, *, model=6, hidden=8, experts=4):
  """Router, wi and wo of a Switch layer, large enough to route unevenly."""
  return {
      "router/kernel": rng.normal(size=[model, experts]).astype(np.float32),
      "wi/kernel": rng.normal(
          size=[experts, model, hidden]).astype(np.float32) / model**0.5,
      "wo/kernel": rng.normal(
          size=[experts, hidden, model]).astype(np.float32) / hidden**0.5,
  }
