"""How weights start: section 2.4, Table 3."""

import os

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import ROOT, BuiltLayer, lower, make_context
from mesh_tensorflow.transformer import transformer_layers, utils

from switch_mtf.layers import initialization
from switch_mtf.layers.switch_ffn import SwitchFFN

MODEL, HIDDEN, EXPERTS = 64, 96, 8

# A normal distribution that is cut off at two deviations has this deviation
# itself: sqrt(1 - 2 * 2 phi(2) / (Phi(2) - Phi(-2))), 4 phi(2) = .21596,
# Phi(2) - Phi(-2) = .95450.
CUT = np.sqrt(1 - .21596 / .95450)


pytestmark = pytest.mark.usefixtures("clean_gin")


def initial_values():
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    return {v.op.name: session.run(v) for v in tf.trainable_variables()}


def check(values, deviation, cut=True):
  """Drawn with that deviation, cut off at two of it or not."""
  bound = 4 * deviation / np.sqrt(2 * values.size)
  assert values.std() == pytest.approx(
      deviation * (CUT if cut else 1), abs=bound)
  assert abs(values.mean()) < 4 * deviation / np.sqrt(values.size)
  assert (np.abs(values).max() <= 2 * deviation * 1.0001) == cut


@pytest.mark.parametrize("scale", [None, 1.0, .5])
def test_switch_layer(scale):
  # sqrt(s / n), n the inputs of a kernel: d_model, and d_ff for wo; .1 is ours.
  if scale is not None:
    gin.bind_parameter("init_scale.value", scale)
  run = BuiltLayer(
      SwitchFFN(num_experts=EXPERTS, hidden_size=HIDDEN, group_size=8),
      f"batch:2,length:4,d_model:{MODEL}", scope="SwitchFFN")
  with run.graph.as_default():
    found = initial_values()
  s = .1 if scale is None else scale
  for name, inputs in (("router", MODEL), ("wi", MODEL), ("wo", HIDDEN)):
    check(found[f"SwitchFFN/{name}/kernel"], np.sqrt(s / inputs))


def dense_layers():
  """Attention and a dense feed-forward layer of T5, as they start."""
  initialization.scale_attention(tf.get_variable_scope())
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = mtf.convert_to_shape(f"batch:2,length:4,d_model:{MODEL}").dims
  context = make_context(mesh)
  context.length_dim, context.position = dims[1], mtf.range(
      mesh, dims[1], tf.int32)
  context.read_priority = context.sequence_id = context.subsequence_id = None
  context.model.model_dim, context.model.ensemble_dim = dims[-1], None
  context.model.ensemble_dims = []
  x = mtf.zeros(mesh, mtf.Shape(dims))
  for layer in (
      transformer_layers.SelfAttention(num_heads=4, key_value_size=16),
      transformer_layers.DenseReluDense(hidden_size=HIDDEN)):
    with tf.variable_scope(type(layer).__name__):
      layer.call(context, x)
  lower(mesh)
  return initial_values()


@pytest.mark.parametrize("value", [None, .1, .5])
def test_the_rest_of_the_model(value):
  # T5 draws q with sqrt(1 / (d_model d_kv)), k, v with sqrt(1 / d_model), o
  # with sqrt(1 / (heads d_kv)), none cut off; _paper_init.gin: times sqrt(s).
  gin.add_config_file_search_path(os.path.join(
      os.path.dirname(utils.__file__), "gin"))
  if value is not None:
    gin.parse_config_file(str(ROOT / "gin/models/_paper_init.gin"))
    gin.bind_parameter("init_scale.value", value)
  s = 1 if value is None else value
  found = dense_layers()
  for name, fan in (("q", MODEL * 16), ("k", MODEL), ("v", MODEL),
                    ("o", 4 * 16)):
    check(found[f"SelfAttention/{name}"], np.sqrt(s / fan),
          cut=value is not None)
  for name, inputs in (("wi", MODEL), ("wo", HIDDEN)):
    check(found[f"DenseReluDense/{name}/kernel"], np.sqrt(s / inputs))
