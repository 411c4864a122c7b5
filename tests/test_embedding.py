"""Embedding and loss by index, against upstream's and by hand."""

import types

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import close, constant, evaluate, lower, make_context, run
from mesh_tensorflow.transformer import transformer

from switch_mtf.kernels import embedding
from switch_mtf.kernels.embedding import GatherEmbedding, cross_entropy_from_ids

VOCAB, MODEL = 8, 6
TOKENS = mtf.convert_to_shape("outer_batch:2,batch:4,length:5").dims
VOCAB_DIM, MODEL_DIM = mtf.convert_to_shape(
    f"vocab:{VOCAB},d_model:{MODEL}").dims
# Mesh, layout, and whether upstream's one-hot is what must be used.
MESHES = {
    "one": ("", "", False), "batch": ("a:2", "batch:a", False),
    "both": ("a:2;b:2", "outer_batch:a;batch:b", False),
    "d_model": ("a:2;b:2", "batch:a;d_model:b", False),
    "idle": ("a:2", "heads:a", False), "vocab": ("a:2", "vocab:a", True),
    "vocab and batch": ("a:2;b:2", "vocab:a;batch:b", True)}


def given(mesh, mesh_shape, layout, mode="train"):
  return make_context(
      mesh, mode=mode, mesh_shape=mtf.convert_to_shape(mesh_shape),
      layout=mtf.convert_to_layout_rules(layout))


def uses_one_hot(mesh):
  return any(isinstance(op, mtf.ops.OneHotOperation)
             for op in mesh.graph.operations)


def embed(cls, mesh_shape="", layout="", **options):
  """Embeddings, logits, the table's gradient; whether one-hot was used."""
  with tf.Graph().as_default():
    mesh, rng = mtf.Mesh(mtf.Graph(), "mesh"), np.random.default_rng(0)
    # Ids repeat, and some are none.
    ids = constant(mesh, rng.integers(-2, VOCAB + 2, [2, 4, 5]).astype(
        np.int32), TOKENS)
    embedding = cls(mesh, VOCAB_DIM, MODEL_DIM, mtf.VariableDType(tf.float32),
                    "embedding", None, **options)
    context = given(mesh, mesh_shape, layout)
    y = embedding.ids_to_embedding(ids, context)
    dy, hidden = (constant(mesh, rng.normal(size=[2, 4, 5, MODEL]).astype(
        np.float32), y.shape) for _ in range(2))
    logits = embedding.hidden_to_logits(hidden, context)
    loss = mtf.reduce_sum(y * dy) + mtf.reduce_sum(mtf.square(logits))
    table, = mesh.graph.trainable_variables
    grad, = mtf.gradients([loss], [table.outputs[0]])
    weight = rng.normal(size=[VOCAB, MODEL])
    return evaluate(lower(mesh, mesh_shape, layout), [y, logits, grad],
                    {"embedding": weight}), uses_one_hot(mesh)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("scale", [False, True])
def test_embedding(mesh, scale):
  mesh_shape, layout, falls_back = MESHES[mesh]
  options = {"scale_variable_like_classifier_weights": scale}
  expected, _ = embed(transformer.VocabEmbedding, **options)
  found, one_hot = embed(GatherEmbedding, mesh_shape, layout, **options)
  assert one_hot == falls_back
  for ours, value in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-5)


def test_gradient_in_another_order():
  # A maximum passes on gradients in the order of its first argument. By hand:
  # where a row's entry is greater than 0 its gradient is twice the entry, for
  # each of the two places with its id.
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  ids = constant(mesh, np.int32([[1, 0, 1]]), mtf.convert_to_shape(
      "batch:1,length:3").dims)
  table = np.float32(np.arange(VOCAB * MODEL).reshape(VOCAB, MODEL) - 8)
  embedding = GatherEmbedding(
      mesh, VOCAB_DIM, MODEL_DIM, mtf.VariableDType(tf.float32), "embedding",
      None)
  y = embedding.ids_to_embedding(ids, given(mesh, "", ""))
  zero = mtf.zeros(mesh, [MODEL_DIM, *ids.shape.dims])
  loss = mtf.reduce_sum(mtf.square(mtf.maximum(zero, y)))
  variable, = mesh.graph.trainable_variables
  grad, = mtf.gradients([loss], [variable.outputs[0]])
  found, = evaluate(lower(mesh), [grad], {"embedding": table})
  expected = np.zeros_like(table)
  expected[0] = 2 * np.maximum(table[0], 0)
  expected[1] = 4 * np.maximum(table[1], 0)
  np.testing.assert_array_equal(found, expected)
  assert found[1].any()


def loss_of(ours, mesh_shape="", layout="", mode="train", **options):
  """Loss, the logits' gradient; whether one-hot was used."""
  with tf.Graph().as_default():
    mesh, rng = mtf.Mesh(mtf.Graph(), "mesh"), np.random.default_rng(0)
    model = transformer.Unitransformer(
        transformer.LayerStack(layers=[]), d_model=MODEL,
        input_vocab_size=VOCAB, output_vocab_size=VOCAB, autoregressive=True,
        max_length=5, vocab_divisor=1,
        loss_fn=cross_entropy_from_ids if ours else None, **options)
    # 1 ends a sequence, 0 and less is no target.
    targets = constant(mesh, rng.integers(-2, VOCAB, [2, 4, 5]).astype(
        np.int32), TOKENS)
    logits = constant(mesh, 3 * rng.normal(size=[2, 4, 5, VOCAB]).astype(
        np.float32), [*TOKENS, VOCAB_DIM])
    loss = model._compute_loss(
        given(mesh, mesh_shape, layout, mode), logits, targets, VOCAB_DIM)
    grad, = mtf.gradients([loss], [logits])
    return evaluate(
        lower(mesh, mesh_shape, layout), [loss, grad]), uses_one_hot(mesh)


@pytest.mark.parametrize("mesh", [m for m in MESHES if m != "d_model"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("options", [
    {}, {"z_loss": 0.0}, {"z_loss": .1}, {"label_smoothing": .1},
    {"loss_on_targets_only": True}, {"loss_denominator": 7.0}], ids=str)
def test_loss(mesh, mode, options):
  mesh_shape, layout, falls_back = MESHES[mesh]
  expected, _ = loss_of(False, mode=mode, **options)
  found, one_hot = loss_of(True, mesh_shape, layout, mode, **options)
  assert one_hot == (falls_back or "label_smoothing" in options)
  for ours, value in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-5)


TOLERANCE = 1e-5


@pytest.mark.parametrize("mesh", ["one", "batch", "vocab"])
def test_nats(mesh):
  mesh_shape, layout, _ = MESHES[mesh]
  with tf.Graph().as_default():
    graph = mtf.Mesh(mtf.Graph(), "mesh")
    logits = np.random.default_rng(1).normal(size=[2, VOCAB]).astype(np.float32)
    batch, length = mtf.convert_to_shape("batch:2,length:3").dims
    model = types.SimpleNamespace(loss_on_targets_only=False)
    found = list(embedding.nats(
        model, given(graph, mesh_shape, layout), mtf.broadcast(
            constant(graph, logits, [batch, VOCAB_DIM]),
            mtf.Shape([batch, length, VOCAB_DIM])),
        constant(graph, np.array([[3, 1, 0], [7, 0, 0]], np.int32),
                 [batch, length]), VOCAB_DIM))
    found = evaluate(lower(graph, mesh_shape, layout), found)
  nats = -np.log(softmax(logits))
  # Three targets are not padding.
  np.testing.assert_allclose(
      found, [nats[0, 3] + nats[0, 1] + nats[1, 7], 3], rtol=1e-5)


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


# Ids of a vocabulary of 5: some again, and some that are none.
IDS = [[0, 4, 2, 2], [5, -1, 3, 6], [2, -7, 1000, 0]]


def one_hot(ids, size):
  return (np.asarray(ids)[..., None] == np.arange(size)).astype(np.float32)


@pytest.mark.parametrize("ids", [IDS, IDS[0], [5, -1], [[[3]]]])
def test_rows(ids):
  table = np.random.default_rng(0).normal(size=[5, 3]).astype(np.float32)
  found = run(embedding.gather_rows(
      tf.constant(table), tf.constant(ids, tf.int32)))
  close(found, one_hot(ids, 5) @ table)


@pytest.mark.parametrize("ids", [IDS, IDS[0], [5, -1], [[[3]]]])
def test_sum_rows(ids):
  y = np.random.default_rng(0).normal(
      size=[*np.shape(ids), 3]).astype(np.float32)
  found = run(embedding.gather_rows_grad(
      tf.constant(y), tf.constant(ids, tf.int32), 5))
  close(found, np.tensordot(
      one_hot(ids, 5).reshape(-1, 5), y.reshape(-1, 3), (0, 0)))


def plain_cross_entropy(logits, ids, z_loss):
  log_z = tf.reduce_logsumexp(logits, axis=-1)
  at = tf.reduce_sum(logits * tf.one_hot(ids, logits.shape[-1]), axis=-1)
  return log_z - at + z_loss * tf.square(log_z)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, .5])
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("shape", [[4], [2, 3], [2, 1, 3]])
def test_cross_entropy(z_loss, scale, shape):
  rng = np.random.default_rng(0)
  values = scale * rng.normal(size=[*shape, 7]).astype(np.float32)
  ids, dloss = rng.integers(0, 7, shape), rng.normal(size=shape)
  # In float64, by the definition.
  probs = softmax(values.astype(np.float64))
  log_z = values.max(-1) + np.log(
      np.exp(values - values.max(-1, keepdims=True)).sum(-1))
  expected = -np.log(np.take_along_axis(
      probs, ids[..., None], -1))[..., 0] + z_loss * log_z**2
  found = []
  for cross_entropy in (embedding.cross_entropy, plain_cross_entropy):
    logits = tf.constant(values)
    loss = cross_entropy(logits, tf.constant(ids, tf.int32), z_loss)
    found.append(run([loss, *tf.gradients(
        loss, [logits], tf.constant(dloss, tf.float32))]))
  (ours, ours_grad), (_, plain_grad) = found
  assert ours.shape == tuple(shape)
  close(ours, expected)
  # Gradients of 100 and more where z_loss is large.
  np.testing.assert_allclose(
      ours_grad, plain_grad, rtol=TOLERANCE,
      atol=TOLERANCE * max(1, np.abs(plain_grad).max()))


def test_cross_entropy_by_hand():
  # Two equal logits ln 3: Z = 6, of which half is the target's.
  logits = tf.constant([[np.log(3.0)] * 2], tf.float32)
  loss = embedding.cross_entropy(logits, tf.constant([1]), .5)
  loss, grad = run([loss, tf.gradients(loss, logits)[0]])
  log_z = np.log(6)
  close(loss, [np.log(2) + .5 * log_z**2])
  close(grad, [[.5 + .5 * log_z, -.5 + .5 * log_z]])
