"""What one processor computes, against NumPy and plain TensorFlow."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import close, run

from switch_mtf.kernels import attention, cache, embedding, norm

TOLERANCE = 1e-5


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
  for name, ours, plain in zip(["y", *given], *found, strict=True):
    assert ours.shape == plain.shape
    close(ours, plain, err_msg=name)
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


@pytest.mark.parametrize("position", [[0, 2, 4], [1, 1, 1], [4, 5, 9]])
def test_remember(position):
  rng = np.random.default_rng(0)
  memory, new = rng.normal(size=[3, 5, 4]), rng.normal(size=[3, 4])
  for row, at in enumerate(position):
    memory[row, at:] = 0
  y = run(cache.write_cache(*map(tf.constant, (memory, new, position))))
  for row, at in enumerate(position):
    if at < 5:  # past the end nothing is written
      memory[row, at] = new[row]
  np.testing.assert_array_equal(y, memory)
