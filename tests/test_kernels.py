"""What one processor computes, against NumPy and plain TensorFlow."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from switch_mtf import kernels

TOLERANCE = 1e-5
# What dense layers and experts are made of, forward and backward: none may
# bring a matrix into another order.
IN_PLACE = [
    "ablm,mf->ablf", "ablf,mf->ablm", "ablm,ablf->mf", "ablm,ablf->fm",
    "mf,ablm->ablf", "exm,emf->exf", "exf,emf->exm", "exm,exf->emf",
    "exm,exf->efm"]
OTHERS = [
    # Attention: batch and heads come first only after a transpose.
    "abhk,amhk->ahbm", "ahbm,amhk->abhk", "ahbm,abhk->amhk", "abhk,amhk->abhm",
    "ablhk,mhk->ablm", "ablm,mhk->ablhk", "ablhk,ablm->mhk",
    # The second tensor's letters come first in the output.
    "mf,ablm->fabl", "abm,mf->fab", "emf,exm->exf", "emf,exm->efx",
    # Letters of both between each other.
    "amb,mcd->acbd", "amb,mcd->cabd", "amb,mcd->cadb", "abm,cdm->cadb",
    # Summed letters in another order in each tensor.
    "abm,mbf->af", "amb,bmf->fa", "xabe,eabf->efx",
    # Nothing to sum, or nothing left of one tensor: no matmul.
    "emf,ef->em", "ef,emf->em", "e,e->", "m,f->mf", "em,ef->emf",
    "abc,abc->abc", "abc,abc->b", "abc,->abc",
    # A letter of one tensor alone is summed.
    "abm,mf->a", "abm,mf->bf", "abmx,mf->abf",
    # Tensors other than two.
    "abc->ca", "abc->", "ab,bc,cd->ad", "ab,ac,ad->bcd",
    "e x m, e m f -> e x f",
]
SIZES = dict(zip("abcdefhklmx", [2, 3, 4, 5, 3, 6, 2, 4, 5, 7, 6], strict=True))


def random_equations(count):
  """Equations of two tensors: any order of letters, now and then none of one
  kind."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    letters = iter(rng.permutation(list(SIZES)))
    batch, summed, a_free, b_free = (
        [next(letters) for _ in range(rng.integers(0, 3))] for _ in range(4))
    a, b, y = ("".join(rng.permutation(group) if group else []) for group in (
        batch + summed + a_free, batch + summed + b_free,
        batch + a_free + b_free))
    yield f"{a},{b}->{y}"


def arrays(equation, seed=0):
  rng = np.random.default_rng(seed)
  names = equation.replace(" ", "").split("->")[0].split(",")
  return [rng.normal(size=[SIZES[letter] for letter in name]).astype(np.float32)
          for name in names]


def run(tensors):
  with tf.Session() as session:
    return session.run(tensors)


def close(found, expected, **kwargs):
  np.testing.assert_allclose(
      found, expected, rtol=TOLERANCE, atol=TOLERANCE, **kwargs)


def kinds():
  return {op.type for op in tf.get_default_graph().get_operations()}


@pytest.mark.parametrize("equation", IN_PLACE + OTHERS)
def test_einsum(equation):
  values = arrays(equation)
  y = kernels.einsum(equation, *map(tf.constant, values))
  expected = np.einsum(equation, *values)
  assert y.shape.as_list() == list(expected.shape)
  close(run(y), expected)


def test_einsum_of_random_equations():
  equations = list(random_equations(300))
  ours = run([kernels.einsum(equation, *map(tf.constant, arrays(equation)))
              for equation in equations])
  for equation, y in zip(equations, ours, strict=True):
    close(y, np.einsum(equation, *arrays(equation)), err_msg=equation)


@pytest.mark.parametrize("equation", IN_PLACE)
def test_layers_transpose_nothing(equation):
  kernels.einsum(equation, *map(tf.constant, arrays(equation)))
  assert not kinds() & {"Einsum", "Transpose"}
  assert kinds() & {"MatMul", "BatchMatMulV2", "BatchMatMulV3"}


def test_einsum_of_the_same_tensor_twice():
  value, _ = arrays("abm,abm->")
  x = tf.constant(value)
  close(run(kernels.einsum("abm,acm->abc", x, x)),
        np.einsum("abm,acm->abc", value, value))


def test_einsum_of_unknown_sizes():
  x, w = arrays("abm,mf->abf")
  placeholder = tf.placeholder(tf.float32, [None, *x.shape[1:]])
  y = kernels.einsum("abm,mf->abf", placeholder, tf.constant(w))
  with tf.Session() as session:
    close(session.run(y, {placeholder: x}), x @ w)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float64])
@pytest.mark.parametrize("equation", IN_PLACE)
def test_einsum_keeps_the_type(equation, dtype):
  xs = [tf.cast(x, dtype) for x in arrays(equation)]
  y = kernels.einsum(equation, *xs)
  assert y.dtype == dtype
  y, *values = run([tf.cast(t, tf.float32) for t in (y, *xs)])
  # bfloat16 has 8 bits, and at most 30 products of size 1 are summed.
  tolerance = .05 if dtype == tf.bfloat16 else TOLERANCE
  np.testing.assert_allclose(
      y, np.einsum(equation, *values), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize("batch", [[], [2], [2, 3]])
@pytest.mark.parametrize("long", [5, 6])  # 5 entries are summed
@pytest.mark.parametrize("avx512", [False, True])
def test_matmul(
    a_transposed, b_transposed, batch, long, avx512, monkeypatch):
  monkeypatch.setattr(kernels, "LONG", long)
  monkeypatch.setattr(kernels, "AVX512", avx512)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=[*batch, 4, 5]), rng.normal(size=[*batch, 5, 6])
  given = [np.swapaxes(x, -1, -2) if transposed else x
           for x, transposed in ((a, a_transposed), (b, b_transposed))]
  close(run(kernels.matmul(*(tf.constant(x, tf.float32) for x in given),
                           a_transposed, b_transposed)), a @ b)
  assert ("BatchMatMulV3" in kinds()) == (
      a_transposed and long == 5 and not avx512)


@pytest.mark.parametrize("a, b, a_transposed, b_transposed, batch", [
    # The gradient of a weight with at least half as many rows again as columns.
    ((5, 9), (5, 6), True, False, True),
    ((5, 8), (5, 6), True, False, False),
    # Times the transpose of a weight with at least twice as many columns.
    ((17, 6), (3, 6), False, True, True),
    ((17, 5), (3, 5), False, True, False),
    ((16, 6), (3, 6), False, True, False),  # few rows
    ((17, 10), (3, 10), False, True, False),  # a large weight: over 20 entries
    ((17, 6), (6, 3), False, False, False),
    ((6, 17), (3, 6), True, True, False),
])
@pytest.mark.parametrize("avx512", [False, True])
def test_matmul_as_a_batch_of_one(
    a, b, a_transposed, b_transposed, batch, avx512, monkeypatch):
  monkeypatch.setattr(kernels, "CACHED", 20)
  monkeypatch.setattr(kernels, "AVX512", avx512)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=a), rng.normal(size=b)
  close(run(kernels.matmul(*(tf.constant(x, tf.float32) for x in (a, b)),
                           a_transposed, b_transposed)),
        (a.T if a_transposed else a) @ (b.T if b_transposed else b))
  assert ("BatchMatMulV2" in kinds()) == (batch and avx512)


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def plain_attend(q, k, v, bias=None, mask=None):
  """`kernels.attend` as it is written on paper."""
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
  for attend in (kernels.attend, plain_attend):
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
  y = kernels.attend(q, k, v, bias)
  y, v, dk, dv = run([y, v, *tf.gradients(y, [k, v])])
  close(y[0, 0, 1], v[0, 0, 1])
  assert (dk[0, 0, 2:] == 0).all() and (dv[0, 0, 2:] == 0).all()


def test_attend_to_huge_logits():
  # exp(300) is more than a float32 holds.
  q = tf.constant([[[30.0]]])
  k, v = tf.constant([[[10.0], [9.0]]]), tf.constant([[[2.0], [3.0]]])
  y = kernels.attend(q, k, v)
  one = kernels.attend_one_query(q[:, 0], k, v)
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
      kernels.attend_one_query(q, k, v, *more),
      kernels.attend(q[:, :, None], k, v, *(b[:, :, None] for b in more))])
  close(y, expected[:, :, 0])


# Ids of a vocabulary of 5: some again, and some that are none.
IDS = [[0, 4, 2, 2], [5, -1, 3, 6], [2, -7, 1000, 0]]


def one_hot(ids, size):
  return (np.asarray(ids)[..., None] == np.arange(size)).astype(np.float32)


@pytest.mark.parametrize("ids", [IDS, IDS[0], [5, -1], [[[3]]]])
def test_rows(ids):
  table = np.random.default_rng(0).normal(size=[5, 3]).astype(np.float32)
  found = run(kernels.rows(tf.constant(table), tf.constant(ids, tf.int32)))
  close(found, one_hot(ids, 5) @ table)


@pytest.mark.parametrize("ids", [IDS, IDS[0], [5, -1], [[[3]]]])
def test_sum_rows(ids):
  y = np.random.default_rng(0).normal(
      size=[*np.shape(ids), 3]).astype(np.float32)
  found = run(kernels.sum_rows(
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
  for cross_entropy in (kernels.cross_entropy, plain_cross_entropy):
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
  loss = kernels.cross_entropy(logits, tf.constant([1]), .5)
  loss, grad = run([loss, tf.gradients(loss, logits)[0]])
  log_z = np.log(6)
  close(loss, [np.log(2) + .5 * log_z**2])
  close(grad, [[.5 + .5 * log_z, -.5 + .5 * log_z]])


@pytest.mark.parametrize("rows, matmuls", [(1, 1), (2, 4), (16, 4), (17, 1)])
def test_matmul_of_few_rows_is_in_parts(rows, matmuls, monkeypatch):
  # 10 rows of 4 entries, for 12 entries at a time: 3 + 3 + 3 + 1.
  monkeypatch.setattr(kernels, "CACHED", 12)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=[rows, 4]), rng.normal(size=[10, 4])
  close(run(kernels.matmul(*(tf.constant(x, tf.float32) for x in (a, b)),
                           False, True)), a @ b.T)
  assert [op.type for op in tf.get_default_graph().get_operations()].count(
      "MatMul") == matmuls


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("expert", [[0], [2, 0, 2, 1], [3, 3, 3]])
def test_chosen_matmul(expert, avx512, monkeypatch):
  monkeypatch.setattr(kernels, "AVX512", avx512)
  rng = np.random.default_rng(0)
  x = rng.normal(size=[len(expert), 5]).astype(np.float32)
  kernel = rng.normal(size=[4, 5, 6]).astype(np.float32)
  found = run(kernels.chosen_matmul(*map(tf.constant, (x, expert, kernel))))
  close(found, np.einsum("ri,rio->ro", x, kernel[expert]))


@pytest.mark.parametrize("shape", [[7, 6], [2, 5, 6], [2, 3, 2, 6]])
def test_rms_norm(shape):
  rng = np.random.default_rng(0)
  x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
  scale = rng.normal(size=6).astype(np.float32)
  scale[2] = 0
  x_t, scale_t = tf.constant(x), tf.constant(scale)
  inverse = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
  y = kernels.rms_norm(x_t, scale_t, 0.1)
  close(run(y), x * inverse * scale)
  expected = tf.gradients(y, [x_t, scale_t], tf.constant(dy))
  for ours, value in zip(run(kernels.rms_norm_gradients(
      tf.constant(dy), x_t, scale_t, 0.1)), run(expected), strict=True):
    close(ours, value)


@pytest.mark.parametrize("position", [[0, 2, 4], [1, 1, 1], [4, 5, 9]])
def test_remember(position):
  rng = np.random.default_rng(0)
  memory, new = rng.normal(size=[3, 5, 4]), rng.normal(size=[3, 4])
  for row, at in enumerate(position):
    memory[row, at:] = 0
  y = run(kernels.remember(*map(tf.constant, (memory, new, position))))
  for row, at in enumerate(position):
    if at < 5:  # past the end nothing is written
      memory[row, at] = new[row]
  np.testing.assert_array_equal(y, memory)
