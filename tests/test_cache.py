"""The cache of decoding, against upstream's and by hand."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import constant, evaluate, run
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf.kernels import cache

TOLERANCE = 1e-5
SIZES = {"batch": 4, "length": 5, "memory_length": 6, "heads": 2, "d_kv": 3}


def dims(names):
  return [mtf.Dimension(name, SIZES[name]) for name in names.split()]


UPSTREAM_ORDER = "batch memory_length heads d_kv"
GIVEN = [0, 2, 6, 3]  # tokens of each partial sequence


def context_of(mesh, mode, *, mesh_shape="", layout="", **options):
  """A stack's, in decoding, of sequences as long as the memory."""
  return transformer.Context(
      model=types.SimpleNamespace(
          mesh_shape=mesh_shape, layout=layout, ensemble_dim=None,
          model_dim=mtf.Dimension("d_model", 6), fully_autoregressive=True,
          ensemble_dims=[]),
      mesh=mesh, batch_dims=dims("batch"), mode=mode,
      length_dim=mtf.Dimension("length", SIZES["memory_length"]),
      variable_dtype=mtf.VariableDType(tf.float32, tf.float32, tf.float32),
      new_states=[], **options)


def decode_step(
    call, *, positions, shared_kv=False, mesh_shape="", layout="",
    order=UPSTREAM_ORDER):
  """Output and new cache of one step, as arrays, and kinds of operations.

  The cache is kept in an order of dimensions; it is returned in upstream's.
  """
  with tf.Graph().as_default():
    mesh, rng = mtf.Mesh(mtf.Graph(), "mesh"), np.random.default_rng(0)
    model_dim = mtf.Dimension("d_model", 6)
    batch, memory, heads, key = dims("batch memory_length heads d_kv")

    def random(shape):
      return constant(
          mesh, rng.normal(size=mtf.Shape(shape).to_integer_list).astype(
              np.float32), shape)

    layer = transformer_layers.SelfAttention(
        num_heads=heads.size, key_value_size=key.size, shared_kv=shared_kv,
        relative_attention_type="bias")
    at = constant(mesh, np.int32(positions), [batch])
    # Zero where nothing has been written, as decoding begins.
    known = mtf.cast(
        mtf.less(mtf.range(mesh, memory, tf.int32), at), tf.float32)
    states = [
        mtf.transpose(random([batch, memory, heads, key]) * known,
                      mtf.Shape(dims(order)))
        for _ in range(1 if shared_kv else 2)]
    context = context_of(
        mesh, "incremental", mesh_shape=mesh_shape, layout=layout,
        position=at, states=states)
    y = call(layer, context, random([batch, model_dim]))
    new_states = [mtf.transpose(state, mtf.Shape(dims(UPSTREAM_ORDER)))
                  for state in context.new_states]
    processors = mtf.convert_to_shape(mesh_shape)
    lowering = mtf.Lowering(mesh.graph, {
        mesh: mtf.placement_mesh_impl.PlacementMeshImpl(
            processors, mtf.convert_to_layout_rules(layout),
            [""] * processors.size)}, autostack=False)
    weights = {v.name: rng.normal(size=v.shape.to_integer_list)
               for v in mesh.graph.trainable_variables}
    kinds = {op.type for op in tf.get_default_graph().get_operations()}
    return evaluate(lowering, [y, *new_states], weights), kinds


@pytest.mark.parametrize("mesh", [
    {}, {"mesh_shape": "a:2;b:2", "layout": "batch:a;heads:b"},
    {"mesh_shape": "a:1", "layout": "batch:a"},
    {"mesh_shape": "a:2", "layout": "memory_length:a"}])
@pytest.mark.parametrize("shared_kv", [False, True])
@pytest.mark.parametrize("positions", [[2, 2, 2, 2], [0, 5, 3, 7]])
@pytest.mark.parametrize(
    "order", [UPSTREAM_ORDER, "batch heads memory_length d_kv"])
def test_cache_as_upstream(mesh, shared_kv, positions, order):
  # 7 is past the end of a memory of 6: nothing is written.
  options = {"positions": positions, "shared_kv": shared_kv}
  expected, _ = decode_step(cache.self_attention.upstream, **options)
  found, kinds = decode_step(
      transformer_layers.SelfAttention.call, **options, **mesh, order=order)
  assert ("ScatterNdNonAliasingAdd" in kinds) == (
      "memory_length" not in mesh.get("layout", ""))
  for one, value in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, value, rtol=TOLERANCE, atol=TOLERANCE)


def test_what_is_kept_lies_as_it_is_read():
  # Keys and values of each head one after another, zero where nothing is given.
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    model_dim, memory = mtf.Dimension("d_model", 6), dims("memory_length")
    length = mtf.Dimension("length", SIZES["memory_length"])
    context = context_of(
        mesh, "first_part", position=mtf.range(mesh, length, tf.int32),
        encoder_output=mtf.zeros(
            mesh, mtf.Shape([*dims("batch"), *memory, model_dim])),
        constant_states=[], initial_position=constant(
            mesh, np.int32(GIVEN), dims("batch")))
    x = mtf.ones(mesh, mtf.Shape([*dims("batch"), length, model_dim]))
    for cls in (transformer_layers.SelfAttention,
                transformer_layers.EncDecAttention):
      with tf.variable_scope(cls.__name__):
        cls(num_heads=SIZES["heads"], key_value_size=SIZES["d_kv"]).call(
            context, x)
    lowering = mtf.Lowering(mesh.graph, {
        mesh: mtf.placement_mesh_impl.PlacementMeshImpl("", "", [""])},
        autostack=False)
    weights = {v.name: np.ones(v.shape.to_integer_list)
               for v in mesh.graph.trainable_variables}
    for kept in evaluate(lowering, context.new_states, weights):
      for sequence, given in zip(kept, GIVEN, strict=True):
        assert (sequence[:, :given] != 0).all()
        assert (sequence[:, given:] == 0).all()  # decoding writes there
  (k, v, memory_dim), = context.constant_states
  assert memory_dim == memory[0]
  for kept in (*context.new_states, k, v):
    assert kept.shape.dims == dims("batch heads memory_length d_kv")
  assert len(context.new_states) == 2


@pytest.mark.parametrize("position", [[0, 2, 4], [1, 1, 1], [4, 5, 9]])
def test_write_cache(position):
  rng = np.random.default_rng(0)
  memory, new = rng.normal(size=[3, 5, 4]), rng.normal(size=[3, 4])
  for row, at in enumerate(position):
    memory[row, at:] = 0
  y = run(cache.write_cache(*map(tf.constant, (memory, new, position))))
  for row, at in enumerate(position):
    if at < 5:  # past the end nothing is written
      memory[row, at] = new[row]
  np.testing.assert_array_equal(y, memory)
