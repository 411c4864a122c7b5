"""Upstream: which constants of a graph are one operation; scopes that close."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf


def made(value, **options):
  return tf.constant(value, **options).op


@pytest.mark.parametrize("value", [3, -2.5, [1, 2], (0, 1), [0.1, 0.2], []])
def test_equal_constants_are_one(value):
  first = made(value)
  assert made(value) is first
  assert made(tuple(value) if isinstance(value, list) else value) is first
  with tf.Session() as session:
    np.testing.assert_array_equal(
        session.run(first.outputs[0]), np.array(value, np.float32)
        if value == [] else tf.make_ndarray(tf.make_tensor_proto(value)))


@pytest.mark.parametrize("one, other", [
    ((3, {}), (3.0, {})), ((1, {}), (True, {})), ((0.0, {}), (-0.0, {})),
    ((3, {}), ([3], {})), ((3, {}), (3, {"dtype": tf.int64})),
    (([1, 2], {}), ([2, 1], {})), (([1, 2], {}), ([[1, 2]], {})),
    ((1, {}), (1, {"shape": [2]})), (([1, 23], {}), ([12, 3], {}))])
def test_other_constants_are_others(one, other):
  first, second = made(one[0], **one[1]), made(other[0], **other[1])
  assert first is not second
  with tf.Session() as session:
    values = [session.run(c.outputs[0]) for c in (first, second)]
  assert len({(v.dtype, repr(v)) for v in values}) == 2


@pytest.mark.parametrize("place", [
    lambda: tf.Graph().as_default(), lambda: tf.device("cpu:1"),
    lambda: tf.control_dependencies([tf.no_op()]),
    lambda: tf.get_default_graph().colocate_with(tf.no_op())])
def test_constants_are_shared_within_a_place(place):
  outside = made(7)
  with place():
    inside = made(7)
    assert inside is not outside
  assert made(7) is outside


def test_constants_of_a_loop_are_its_own(loops_of_t5):
  seen = [made(1)]

  def body(i):
    seen.append(made(1))
    assert made(1) is seen[-1]
    return i + 1

  count = tf.while_loop(lambda i: i < 5, body, [0])
  seen.append(made(1))
  assert seen[0] is seen[2] is not seen[1]
  with tf.Session() as session:
    assert session.run(count) == 5


@pytest.mark.parametrize("value", [np.array([1, 2]), "name", list(range(9))])
def test_what_may_be_large_is_not_shared(value):
  assert made(value) is not made(value)


def test_names_of_scopes_are_numbered_as_before():
  # What is inside a scope starts anew when that scope is opened again, by its
  # name; beside it, by default names, the count goes on.
  names = []
  for _ in range(2):
    with tf.variable_scope("outer", reuse=tf.AUTO_REUSE):
      for _ in range(2):
        with tf.variable_scope(None, default_name="inner"):
          names.append(tf.get_variable_scope().name)
    with tf.variable_scope(None, default_name="beside"):
      names.append(tf.get_variable_scope().name)
  assert names == ["outer/inner", "outer/inner_1", "beside",
                   "outer/inner", "outer/inner_1", "beside_1"]
