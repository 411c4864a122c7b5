"""A single feed-forward layer with its gradients: ours or T5's dense layer."""

from switch_mtf.upstream import fixes  # isort:skip  (before tensorflow)

import types

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer_layers

from benchmarks.balance import BalancedRouter
from benchmarks.mesh_model import MeshSubject
from benchmarks.spec import Spec
from switch_mtf.layers.switch_ffn import SwitchFFN

D_MODEL, D_FF = 256, 1024


def build(spec: Spec) -> MeshSubject:
  """Builds the layer and the gradients of its input and weights.

  Args:
    spec: sizes of the layer; 1 expert is the dense layer.

  Returns:
    The layer as a subject.
  """
  tf.disable_v2_behavior()
  fixes.use_resource_variables()
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  shape = mtf.Shape([
      mtf.Dimension("batch", spec.batch),
      mtf.Dimension("length", spec.inputs),
      mtf.Dimension("d_model", D_MODEL)])
  rng = np.random.default_rng(0)
  values = [rng.normal(size=shape.to_integer_list).astype(np.float32)
            for _ in range(2)]
  data = tf.data.Dataset.from_tensors(tuple(values)).repeat()
  x, dy = (mtf.import_tf_tensor(mesh, t, shape)
           for t in tf.data.make_one_shot_iterator(data).get_next())
  context = _context(mesh, shape)
  layer = _layer(spec)
  with tf.variable_scope(type(layer).__name__):
    y = layer.call(context, x)
  grads = mtf.gradients(
      [y], [x, *(v.outputs[0] for v in mesh.graph.trainable_variables)],
      grad_ys=[dy])
  lowering = mtf.Lowering(mesh.graph, {
      mesh: mtf.placement_mesh_impl.PlacementMeshImpl("", "", [""])})
  fetch = [lowering.export_to_tf_tensor(t).op for t in [y, *grads]]
  session = tf.Session()
  session.run(tf.global_variables_initializer())
  return MeshSubject(session, fetch, {"parameters": sum(
      v.shape.num_elements() for v in tf.trainable_variables())})


def _layer(spec: Spec):
  """Returns T5's dense layer for 1 expert, else the Switch layer."""
  if spec.experts == 1:
    return transformer_layers.DenseReluDense(hidden_size=D_FF)
  return SwitchFFN(
      num_experts=spec.experts, hidden_size=D_FF,
      group_size=spec.group_size, capacity_factor_train=spec.capacity_factor,
      router=BalancedRouter())


def _context(mesh: mtf.Mesh, shape: mtf.Shape) -> types.SimpleNamespace:
  """Returns the parts of a training transformer.Context that a layer reads."""
  return types.SimpleNamespace(
      mesh=mesh, mode="train", train=True, losses=None, num_microbatches=1,
      nonpadding=None, activation_dtype=tf.float32,
      length_dim=shape.dims[1],
      variable_dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
      model=types.SimpleNamespace(
          layout=None, mesh_shape=None, autoregressive=False,
          model_dim=shape.dims[-1], ensemble_dims=[]))
