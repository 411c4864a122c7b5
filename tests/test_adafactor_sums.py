"""Adafactor's sums of squares, whole and in parts, against NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.kernels import adafactor

PARTS = {"one matrix": [4, 6], "a matrix each": [3, 4, 6], "odd": [5, 3, 4],
         "parts": [8, 4, 6], "uneven parts": [6, 4, 6]}


def close(tensors, *expected):
  with tf.Session() as session:
    for y, value in zip(session.run(tensors), expected, strict=True):
      np.testing.assert_allclose(y, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", PARTS)
def test_sums_of_squares(shape, monkeypatch):
  monkeypatch.setattr(adafactor, "CACHED", 30)  # parts of one matrix, or of few
  rng = np.random.default_rng(0)
  x, row, column = (
      rng.normal(size=s).astype(np.float32)
      for s in (PARTS[shape], PARTS[shape][:-1],
                [*PARTS[shape][:-2], PARTS[shape][-1]]))
  close(adafactor.row_and_column_sums(tf.constant(x)),
        (x**2).sum(-1), (x**2).sum(-2))
  total = adafactor.weighted_sum_of_squares(*map(tf.constant, (x, row, column)))
  assert total.shape.rank == 0
  close([total], np.sum(x**2 * row[..., None] * column[..., None, :]))
  kinds = {op.type for op in tf.get_default_graph().get_operations()}
  assert ("Split" in kinds) == ("parts" in shape)


def test_no_more_parts_than_are_worth_building():
  x = tf.placeholder(tf.float32, [2048, 2080, 6144])  # a matrix of Switch-C
  adafactor.row_and_column_sums(x)
  squares = [op for op in tf.get_default_graph().get_operations()
             if op.type == "Square"]
  assert len(squares) == adafactor.MOST_PARTS
