"""What multiplies matrices, against NumPy and `tf.einsum`."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import close, run

from switch_mtf.kernels import matmuls

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


def kinds():
  return {op.type for op in tf.get_default_graph().get_operations()}


@pytest.mark.parametrize("equation", IN_PLACE + OTHERS)
def test_einsum(equation):
  values = arrays(equation)
  y = matmuls.einsum(equation, *map(tf.constant, values))
  expected = np.einsum(equation, *values)
  assert y.shape.as_list() == list(expected.shape)
  close(run(y), expected)


def test_einsum_of_random_equations():
  equations = list(random_equations(300))
  ours = run([matmuls.einsum(equation, *map(tf.constant, arrays(equation)))
              for equation in equations])
  for equation, y in zip(equations, ours, strict=True):
    close(y, np.einsum(equation, *arrays(equation)), err_msg=equation)


@pytest.mark.parametrize("equation", IN_PLACE)
def test_layers_transpose_nothing(equation):
  matmuls.einsum(equation, *map(tf.constant, arrays(equation)))
  assert not kinds() & {"Einsum", "Transpose"}
  assert kinds() & {"MatMul", "BatchMatMulV2", "BatchMatMulV3"}


def test_einsum_of_the_same_tensor_twice():
  value, _ = arrays("abm,abm->")
  x = tf.constant(value)
  close(run(matmuls.einsum("abm,acm->abc", x, x)),
        np.einsum("abm,acm->abc", value, value))


def test_einsum_of_unknown_sizes():
  x, w = arrays("abm,mf->abf")
  placeholder = tf.placeholder(tf.float32, [None, *x.shape[1:]])
  y = matmuls.einsum("abm,mf->abf", placeholder, tf.constant(w))
  with tf.Session() as session:
    close(session.run(y, {placeholder: x}), x @ w)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float64])
@pytest.mark.parametrize("equation", IN_PLACE)
def test_einsum_keeps_the_type(equation, dtype):
  xs = [tf.cast(x, dtype) for x in arrays(equation)]
  y = matmuls.einsum(equation, *xs)
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
  monkeypatch.setattr(matmuls, "LONG", long)
  monkeypatch.setattr(matmuls, "AVX512", avx512)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=[*batch, 4, 5]), rng.normal(size=[*batch, 5, 6])
  given = [np.swapaxes(x, -1, -2) if transposed else x
           for x, transposed in ((a, a_transposed), (b, b_transposed))]
  close(run(matmuls.matmul(*(tf.constant(x, tf.float32) for x in given),
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
  monkeypatch.setattr(matmuls, "CACHED", 20)
  monkeypatch.setattr(matmuls, "AVX512", avx512)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=a), rng.normal(size=b)
  close(run(matmuls.matmul(*(tf.constant(x, tf.float32) for x in (a, b)),
                           a_transposed, b_transposed)),
        (a.T if a_transposed else a) @ (b.T if b_transposed else b))
  assert ("BatchMatMulV2" in kinds()) == (batch and avx512)


@pytest.mark.parametrize("rows, count", [(1, 1), (2, 4), (16, 4), (17, 1)])
def test_matmul_of_few_rows_is_in_parts(rows, count, monkeypatch):
  # 10 rows of 4 entries, for 12 entries at a time: 3 + 3 + 3 + 1.
  monkeypatch.setattr(matmuls, "CACHED", 12)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=[rows, 4]), rng.normal(size=[10, 4])
  close(run(matmuls.matmul(*(tf.constant(x, tf.float32) for x in (a, b)),
                           False, True)), a @ b.T)
  assert [op.type for op in tf.get_default_graph().get_operations()].count(
      "MatMul") == count


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("expert", [[0], [2, 0, 2, 1], [3, 3, 3]])
def test_chosen_matmul(expert, avx512, monkeypatch):
  monkeypatch.setattr(matmuls, "AVX512", avx512)
  rng = np.random.default_rng(0)
  x = rng.normal(size=[len(expert), 5]).astype(np.float32)
  kernel = rng.normal(size=[4, 5, 6]).astype(np.float32)
  found = run(matmuls.chosen_matmul(*map(tf.constant, (x, expert, kernel))))
  close(found, np.einsum("ri,rio->ro", x, kernel[expert]))
