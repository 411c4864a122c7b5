"""Builds small graphs and runs them, as arrays in and arrays out."""

import dataclasses
import pathlib
import types

import mesh_tensorflow as mtf
import numpy as np
import t5.models.mesh_transformer_main as t5_main
import tensorflow.compat.v1 as tf

from switch_mtf.layers import dispatch, stateless, summaries
from switch_mtf.layers.exploration import InputJitter
from switch_mtf.layers.routing import Router, SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

ROOT = pathlib.Path(__file__).resolve().parents[2]
T5_GIN = pathlib.Path(t5_main.__file__).parent / "gin"


def make_context(
    mesh, *, mode="train", layout=None, mesh_shape=None, nonpadding=None):
  """What a layer reads of a transformer.Context."""
  dtype = mtf.VariableDType(tf.float32, tf.float32, tf.float32)
  return types.SimpleNamespace(
      mesh=mesh, mode=mode, train=mode == "train", losses=[],
      num_microbatches=1, nonpadding=nonpadding, variable_dtype=dtype,
      activation_dtype=tf.float32,
      model=types.SimpleNamespace(
          layout=layout, mesh_shape=mesh_shape, autoregressive=False))


def constant(mesh, values, dims):
  """An array as a constant mtf tensor."""
  return mtf.import_tf_tensor(mesh, tf.constant(values), mtf.Shape(dims))


def lower(mesh, mesh_shape="", layout=""):
  """Lowers the graph of `mesh`; the mesh's processors share this CPU."""
  mesh_shape = mtf.convert_to_shape(mesh_shape)
  impl = mtf.placement_mesh_impl.PlacementMeshImpl(
      mesh_shape, mtf.convert_to_layout_rules(layout), [""] * mesh_shape.size)
  return mtf.Lowering(mesh.graph, {mesh: impl})


def as_it_is():
  """Runs a graph as it is: these take longer to optimise than to run."""
  config = tf.ConfigProto(
      intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return config


def evaluate(lowering, tensors, weights=None, feed=None):
  """Runs mtf tensors (None stays None) with given weights, as arrays.

  `weights` maps the end of a variable's name to its value; every variable must
  be named.
  """
  exported = [None if t is None else lowering.export_to_tf_tensor(t)
              for t in tensors]
  with tf.Session(config=as_it_is()) as session:
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


class BuiltLayer:
  """A feed-forward layer in a graph of its own, built once, run many times.

  A call returns a dict: y; loss, what the layer added to the model's; the
  metrics by name; and with gradients=True, for each variable ("wi/kernel") and
  "x", "d <name>": the gradient of sum(y * dy) + loss.
  """

  def __init__(self, layer, x_shape, *, mode="train", mesh_shape="", layout="",
               gradients=False, scope="block_000/layer_001/SwitchFFN"):
    self.graph, self._inputs, self._scope = tf.Graph(), {}, scope
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    x_shape = mtf.convert_to_shape(x_shape)
    with self.graph.as_default():
      self._step = tf.train.get_or_create_global_step()
      x = self._input(mesh, "x", x_shape.dims)
      real = self._input(mesh, "real", x_shape.dims[:-1])
      dy = self._input(mesh, "dy", x_shape.dims)
      context = make_context(
          mesh, mode=mode, nonpadding=real,
          layout=mtf.convert_to_layout_rules(layout),
          mesh_shape=mtf.convert_to_shape(mesh_shape))
      # Upstream's layers read these as well.
      context.length_dim = mtf.Dimension("length", x_shape.dims[-2].size)
      context.position = mtf.range(mesh, context.length_dim, tf.int32)
      context.read_priority = context.sequence_id = None
      context.subsequence_id = context.input_embeddings = None
      context.model.model_dim, context.model.ensemble_dim = x_shape[-1], None
      context.model.ensemble_dims = []
      context.model.fully_autoregressive = False
      with tf.variable_scope(scope):
        y = layer.call(context, x)
      loss = (mtf.add_n(context.losses) if context.losses
              else mtf.zeros(mesh, mtf.Shape([])))
      found = {"y": y, "loss": loss}
      self.variables = {
          v.name[len(scope) + 1:]: v.outputs[0]
          for v in mesh.graph.trainable_variables}
      if gradients:
        inputs = {"x": x, **self.variables}
        found |= zip((f"d {name}" for name in inputs), mtf.gradients(
            [mtf.reduce_sum(y * dy) + loss], list(inputs.values())),
            strict=True)
      self._run(lower(mesh, mesh_shape, layout), found)

  def _input(self, mesh, name, dims):
    """A placeholder as an mtf tensor."""
    shape = mtf.Shape(dims)
    self._inputs[name] = tf.placeholder(tf.float32, shape.to_integer_list)
    return mtf.import_tf_tensor(mesh, self._inputs[name], shape)

  def _run(self, lowering, found):
    """Prepares the session."""
    self.counters = lowering.counters
    self._outputs = {
        name: lowering.export_to_tf_tensor(t) for name, t in found.items()}
    self._outputs |= {
        name.split("/")[-1]: t for name, t in recorded_metrics().items()}
    self._start = lowering.copy_masters_to_slices()
    self._session = tf.Session(config=as_it_is())
    self._session.run(tf.global_variables_initializer())

  def __call__(self, weights, x, real=None, dy=None, step=0):
    """Runs the layer with `weights`, all of them, at global step `step`."""
    given = {"x": x, "real": np.ones(x.shape[:-1]) if real is None else real,
             "dy": np.zeros(x.shape) if dy is None else dy}
    with self.graph.as_default():
      assert set(weights) == set(self.variables)
      for name, value in weights.items():
        variable, = [v for v in tf.global_variables()
                     if v.op.name == f"{self._scope}/{name}"]
        variable.load(value, self._session)
      self._step.load(step, self._session)
      self._session.run(self._start)
      return self._session.run(self._outputs, {
          placeholder: given[name]
          for name, placeholder in self._inputs.items()})


def random_weights(rng, *, model=6, hidden=8, experts=4):
  """Router, wi and wo of a Switch layer, large enough to route unevenly."""
  return {
      "router/kernel": rng.normal(size=[model, experts]).astype(np.float32),
      "wi/kernel": rng.normal(
          size=[experts, model, hidden]).astype(np.float32) / model**0.5,
      "wo/kernel": rng.normal(
          size=[experts, hidden, model]).astype(np.float32) / hidden**0.5,
  }


class Watched(Router):
  """A router that also hands out, as metrics "seen_...", what it decided."""

  def __init__(self, router):
    super().__init__(router.exploration)
    self.router = router
    self.num_choices = router.num_choices

  def assign(self, *args):
    raise AssertionError("the router's own is used")

  def __call__(self, x_OGSM, nonpadding_OGS, dims, context):  # noqa: N803
    routing = self.router(x_OGSM, nonpadding_OGS, dims, context)
    seen = {"expert": routing.expert_OGSK, "slot": routing.slot_OGSK,
            "weight": routing.weight_OGSK,
            "choice": dispatch.indices(routing, dims)[1],
            "drawn": stateless.uniform(x_OGSM.mesh, dims.OGS, "second_expert")}
    return dataclasses.replace(routing, metrics=routing.metrics | {
        f"seen_{name}": value for name, value in seen.items()})


def run(tensors):
  """What tensors of the default graph are."""
  with tf.Session() as session:
    return session.run(tensors)


def close(found, expected, **kwargs):
  """Fails unless two arrays are equal to float rounding."""
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, **kwargs)


SCOPE = "block_000/layer_001/SwitchFFN"
MODEL, HIDDEN = 6, 8


def make_layer(experts, group_size, *, jitter=0.0, **changed):
  """A small Switch layer."""
  arguments = dict(hidden_size=HIDDEN, min_capacity=1)
  return SwitchFFN(num_experts=experts, group_size=group_size,
                   router=SwitchRouter(InputJitter(jitter)),
                   **(arguments | changed))
