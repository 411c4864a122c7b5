"""Attention in one operation, against upstream's and by hand."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import close, run
from mesh_tensorflow.transformer import attention as upstream

from switch_mtf.kernels import attention
from switch_mtf.kernels import attention as ours


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def plain_attend(q, k, v, bias=None, mask=None):
  """`attention.attend` as it is written on paper."""
  weights = tf.einsum("bhlk,bhmk->bhlm", q, k)
  weights = tf.nn.softmax(weights if bias is None else weights + bias)
  return tf.einsum(
      "bhlm,bhmv->bhlv", weights if mask is None else weights * mask, v)


BIASES = [None, [2, 3, 4, 5], [1, 3, 4, 5], [2, 1, 1, 5], [1, 1, 4, 1],
          [1, 1, 1, 1]]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", [None, [2, 3, 4, 5], [2, 1, 1, 5]])
def test_attend(bias, mask):
  rng = np.random.default_rng(0)
  q, k, v, dy = (rng.normal(size=[2, 3, *shape]).astype(np.float32)
                 for shape in ([4, 6], [5, 6], [5, 7], [4, 7]))
  given = {"q": q, "k": k, "v": v}
  if bias:
    given["bias"] = rng.normal(size=bias).astype(np.float32)
  # Inverted dropout: what is left is scaled up.
  kept = (rng.random(mask) < .7).astype(np.float32) / .7 if mask else 1.0
  dropped = tf.constant(kept) if mask else None
  # In NumPy.
  weights = softmax(q @ k.swapaxes(-1, -2) + given.get("bias", 0))
  expected = (weights * kept) @ v
  found = []
  for attend in (attention.attend, plain_attend):
    xs = {name: tf.constant(x) for name, x in given.items()}
    y = attend(xs["q"], xs["k"], xs["v"], xs.get("bias"), dropped)
    found.append(run([y, *tf.gradients(y, list(xs.values()), dy)]))
  for name, mine, plain in zip(["y", *given], *found, strict=True):
    assert mine.shape == plain.shape
    close(mine, plain, err_msg=name)
  close(found[0][0], expected)


def test_attend_where_a_bias_hides_the_memory():
  rng = np.random.default_rng(0)
  q, k, v = (tf.constant(rng.normal(size=[1, 1, n, 3]), tf.float32)
             for n in (2, 4, 4))
  # Hidden as upstream does it: -1e9. The second query sees one entry only.
  bias = tf.constant([[[[0, 0, -1e9, -1e9], [-1e9, 0, -1e9, -1e9]]]])
  y = attention.attend(q, k, v, bias)
  y, v, dk, dv = run([y, v, *tf.gradients(y, [k, v])])
  close(y[0, 0, 1], v[0, 0, 1])
  assert (dk[0, 0, 2:] == 0).all() and (dv[0, 0, 2:] == 0).all()


def test_attend_to_huge_logits():
  # exp(300) is more than a float32 holds.
  q = tf.constant([[[30.0]]])
  k, v = tf.constant([[[10.0], [9.0]]]), tf.constant([[[2.0], [3.0]]])
  y = attention.attend(q, k, v)
  one = attention.attend_one_query(q[:, 0], k, v)
  y, one, *grads = run([y, one, *tf.gradients(y, [q, k, v])])
  close(y, [[[2.0]]])
  close(one, [[2.0]])
  assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("bias", [None, [2, 3, 5], [1, 1, 5]])
def test_attend_one_query(bias):
  rng = np.random.default_rng(0)
  q, k, v = (tf.constant(rng.normal(size=[2, 3, *n, 4]), tf.float32)
             for n in ((), (5,), (5,)))
  more = [tf.constant(rng.normal(size=bias), tf.float32)] if bias else []
  y, expected = run([
      attention.attend_one_query(q, k, v, *more),
      attention.attend(q[:, :, None], k, v, *(b[:, :, None] for b in more))])
  close(y, expected[:, :, 0])


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
