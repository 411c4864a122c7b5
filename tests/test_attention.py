"""Our attention against upstream's, forward and backward."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import constant, evaluate
from mesh_tensorflow.transformer import attention as upstream
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf.kernels import attention as ours
from switch_mtf.kernels import cache

TOLERANCE = 1e-5
SIZES = {"batch": 4, "length": 5, "memory_length": 6, "heads": 2, "d_kv": 3}


def dims(names):
  return [mtf.Dimension(name, SIZES[name]) for name in names.split()]


def attend(attention, shapes, *, shared_kv=False, mesh_shape="", layout="",
           **kwargs):
  """Output and gradients, as arrays by name."""
  with tf.Graph().as_default():
    mtf_graph = mtf.Graph()
    mesh = mtf.Mesh(mtf_graph, "mesh")
    rng = np.random.default_rng(0)
    xs = {}
    for name, names in shapes.items():
      value = rng.normal(size=[SIZES[n] for n in names.split()])
      xs[name] = mtf.import_tf_tensor(
          mesh, tf.constant(value, tf.float32), mtf.Shape(dims(names)))
    if shared_kv:
      xs["v"] = xs["k"]
    memory, key = dims("memory_length d_kv")
    model = types.SimpleNamespace(mesh_shape=mesh_shape, layout=layout)
    context = types.SimpleNamespace(
        model=model, train=True, num_microbatches=1, losses=None)
    bias = xs.get("bias")
    if "more bias" in xs:
      bias += xs["more bias"]
    y = attention(xs["q"], xs["k"], xs["v"], memory, key, key,
                  bias, context=context, **kwargs)
    dy = mtf.import_tf_tensor(mesh, tf.constant(
        rng.normal(size=y.shape.to_integer_list), tf.float32), y.shape)
    inputs = {name: x for name, x in xs.items()
              if not (shared_kv and name == "v")}
    grads = mtf.gradients([y], list(inputs.values()), grad_ys=[dy])
    shape = mtf.convert_to_shape(mesh_shape)
    impl = mtf.placement_mesh_impl.PlacementMeshImpl(
        shape, mtf.convert_to_layout_rules(layout), [""] * shape.size)
    lowering = mtf.Lowering(mtf_graph, {mesh: impl})
    results = {"y": y, **{f"d {name}": grad for name, grad in zip(
        inputs, grads, strict=True)}}
    with tf.Session() as session:
      found = session.run({
          name: lowering.export_to_tf_tensor(x) for name, x in results.items()})
    return found


SELF = {"q": "batch length heads d_kv", "k": "batch memory_length heads d_kv",
        "v": "batch memory_length heads d_kv"}
ONE = {**SELF, "q": "batch heads d_kv"}
CASES = {
    "plain": (SELF, {}),
    "bias of positions": (
        {**SELF, "bias": "heads length memory_length"}, {}),
    "bias of all": (
        {**SELF, "bias": "batch length memory_length heads"}, {}),
    "bias of memory": ({**SELF, "bias": "memory_length"}, {}),
    "sum of biases": (
        {**SELF, "bias": "batch length memory_length",
         "more bias": "length memory_length heads"}, {}),
    # With a bias: upstream's split over a spare mesh axis wants one.
    "one head": ({"q": "batch length d_kv", "k": "batch memory_length d_kv",
                  "v": "batch memory_length d_kv",
                  "bias": "length memory_length"}, {}),
    "heads first": ({name: names.replace(" heads", "").replace(
        "batch", "heads batch") for name, names in SELF.items()}, {}),
    "shared": (SELF, {"shared_kv": True}),
    "one query": (ONE, {}),
    "one query, bias": ({**ONE, "bias": "heads memory_length"}, {}),
    "one query, sum of biases": (
        {**ONE, "bias": "batch memory_length",
         "more bias": "heads memory_length"}, {}),
    "one query, shared": ({**ONE, "bias": "memory_length"},
                          {"shared_kv": True}),
}


MEMORY_SPLIT = {"mesh_shape": "a:2", "layout": "memory_length:a"}


# Upstream cannot split the memory where there is no bias.
@pytest.mark.parametrize("case,mesh", [
    (case, mesh) for case, (shapes, _) in CASES.items() for mesh in [
        {}, {"mesh_shape": "a:2;b:2", "layout": "batch:a;heads:b"},
        {"mesh_shape": "a:2", "layout": "batch:a"}, MEMORY_SPLIT]
    if "bias" in shapes or mesh is not MEMORY_SPLIT])
def test_same_as_upstream(case, mesh):
  shapes, options = CASES[case]
  expected = attend(ours.attention.upstream, shapes, **options)
  found = attend(ours.attention, shapes, **options, **mesh)
  for name, value in expected.items():
    np.testing.assert_allclose(
        found[name], value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_gradient_of_a_sum_of_biases_is_added_up_first():
  with tf.Graph().as_default() as graph:
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    q, k, v, seen, position = (
        mtf.import_tf_tensor(mesh, tf.placeholder(
            tf.float32, mtf.Shape(dims(names)).to_integer_list),
                             mtf.Shape(dims(names)))
        for names in [*SELF.values(), "batch length memory_length",
                      "length memory_length heads"])
    memory, key = dims("memory_length d_kv")
    context = types.SimpleNamespace(
        model=types.SimpleNamespace(mesh_shape="", layout=""), train=True)
    y = ours.attention(
        q, k, v, memory, key, key, seen + position, context=context)
    grads = mtf.gradients([y], [position])
    impl = mtf.placement_mesh_impl.PlacementMeshImpl("", "", [""])
    lowering = mtf.Lowering(mesh.graph, {mesh: impl})
    lowering.export_to_tf_tensor(grads[0])
    assert "attention/parallel_0/Softmax" in {
        op.name for op in graph.get_operations()}  # it is not upstream's
    # As large as the logits: 4 x 2 x 5 x 6. None is brought into the order of
    # the sum, in which upstream has it.
    assert not [op for op in graph.get_operations() if op.type == "Transpose"
                and op.name.startswith("attention")
                and op.outputs[0].shape.num_elements() == 240]


def test_it_is_what_layers_use():
  assert upstream.attention is ours.attention


@pytest.mark.parametrize("options", [
    {"extra_logit": 0.}, {"z_loss_coeff": 1e-4}, {"tpu": True}])
def test_what_is_left_to_upstream(monkeypatch, options):
  # Only on TPU is a mesh made with what places variables.
  options = dict(options)
  placer = types.SimpleNamespace(device_function=lambda op: "") if (
      options.pop("tpu", False)) else None
  monkeypatch.setattr(
      ours.attention, "upstream", lambda *args, **kwargs: "upstream's")
  mesh = mtf.Mesh(mtf.Graph(), "mesh", placer)
  q, k, v = (mtf.zeros(mesh, dims(SELF[name])) for name in "qkv")
  memory, key = dims("memory_length d_kv")
  context = types.SimpleNamespace(
      model=types.SimpleNamespace(mesh_shape="", layout=""), train=False)
  assert ours.attention(
      q, k, v, memory, key, key, context=context, **options) == "upstream's"


@pytest.mark.parametrize("broadcast", [[], ["length"]])
def test_dropout(broadcast):
  # Of 6 equal weights 1/6 some are dropped and the others doubled: with values
  # of 1 the outputs are thirds, the same along a length that is broadcast.
  def attention(q, k, v, *args, **kwargs):
    ones = mtf.ones(q.mesh, v.shape)
    return ours.attention(q * 0., k, ones + v * 0., *args, **kwargs)

  y = attend(attention, SELF, dropout_rate=.5,
             dropout_broadcast_dims=dims(" ".join(broadcast)))["y"]
  np.testing.assert_allclose(y * 3, np.round(y * 3), atol=TOLERANCE)
  assert len(np.unique(np.round(y * 3))) > 2
  assert ((y == y[:, :1]).all()) == bool(broadcast)


# The cache.


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
