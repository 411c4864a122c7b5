"""Bytes at the worst moment of a step, by hand."""

import types
from unittest import mock

import pytest
import tensorflow.compat.v1 as tf
from helpers.plans import planned

import tasks  # noqa: F401
from switch_mtf.planning import (
  memory,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_worst_moment_by_hand():
  # Float32, so 4 bytes an entry. y = x w is [100, 30]; z = exp(y) may have y's
  # memory, since nobody else reads y; t = z transposed needs its own; the sum
  # is 4 bytes. At most z and t are there: 2 * 12,000 bytes. A reshape is none.
  with tf.Graph().as_default():
    x, w = tf.placeholder(tf.float32, [100, 20]), tf.ones([20, 30])
    y = tf.reshape(tf.matmul(x, w), [30, 100])
    z = tf.exp(y)
    t = tf.transpose(z)
    total = tf.reduce_sum(t)
    step = types.SimpleNamespace(
        train_op=total.op, gradients=[],
        lowering=types.SimpleNamespace(
            tensors={}, graph=types.SimpleNamespace(operations=[])))
    with mock.patch.object(memory, "_kinds", lambda _: lambda op: "dispatch"):
      worst = memory._worst_moment(step)
  assert worst["gradients"] == worst["activations"] == 0
  assert 24_000 <= worst["dispatch"] <= 24_000 + 8  # reduce_sum's axes


def test_a_tensor_that_is_read_again_keeps_its_memory():
  with tf.Graph().as_default():
    x = tf.matmul(tf.placeholder(tf.float32, [10, 10]), tf.ones([10, 10]))
    y = tf.exp(x)
    z = tf.matmul(y, x)
    step = types.SimpleNamespace(
        train_op=z.op, gradients=[],
        lowering=types.SimpleNamespace(
            tensors={}, graph=types.SimpleNamespace(operations=[])))
    with mock.patch.object(memory, "_kinds", lambda _: lambda op: "dispatch"):
      assert memory._worst_moment(step)["dispatch"] == 3 * 400


def test_memory_of_tokens_grows_with_the_batch():
  # In a straight line; relative positions are the same for any batch.
  four, eight, sixteen = (
      planned(f"batch_size = {size}").memory for size in (4, 8, 16))
  assert four.standing == eight.standing == sixteen.standing
  assert sixteen.of_tokens - eight.of_tokens == pytest.approx(
      2 * (eight.of_tokens - four.of_tokens), rel=.02)
  assert 1.5 < eight.of_tokens / four.of_tokens <= 2
