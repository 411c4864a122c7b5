"""Speed patches change how graphs are made and started, not their numbers."""

import threading
from unittest import mock

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from google.protobuf import text_format
from helpers.graphs import constant, evaluate, lower
from tensorflow.python.autograph.pyct import transpiler
from tensorflow.python.training import training_util
from tensorflow_estimator.python.estimator import util as estimator_util


def test_packing_is_not_translated():
  def pack(function):
    data = tf.data.Dataset.from_tensors(
        {"inputs": tf.range(2, 9), "targets": tf.range(2, 6)}).repeat(3)
    # AutoGraph goes on without what it cannot translate.
    with mock.patch.object(
        transpiler.PyToPy, "transform_function",
        side_effect=AssertionError) as translate:
      function(data, {"inputs": 16, "targets": 8}, pack=True,
               feature_keys=("inputs", "targets"), ensure_eos=False)
    return translate.called

  from mesh_tensorflow.transformer import dataset
  assert pack(dataset.pack_or_pad.__wrapped__)
  assert not pack(dataset.pack_or_pad)


def test_a_wrong_type_is_named_with_those_that_may_be():
  with tf.Graph().as_default(), pytest.raises(TypeError, match=(
      "'x' has DataType string not in list of allowed values: bfloat16, ")):
    tf.math.sqrt(tf.constant("text"))


@pytest.mark.parametrize("given, wanted, transposes", [
    ("ac", "abc", 0), ("b", "abc", 0), ("", "ab", 0), ("abc", "abc", 0),
    ("ca", "abc", 1), ("cba", "abc", 1)])
def test_dimensions_are_added_where_they_belong(given, wanted, transposes):
  # As numpy's einsum has it, with 1 for each dimension that is new.
  sizes = {"a": 2, "b": 3, "c": 4}
  x = np.arange(np.prod([sizes[d] for d in given], dtype=int)).reshape(
      [sizes[d] for d in given])
  shapes = [mtf.Shape([mtf.Dimension(d, sizes[d]) for d in names])
            for names in (given, wanted)]
  with tf.Graph().as_default() as graph, tf.Session() as session:
    found = session.run(mtf.ops._expand_dims(tf.constant(x), *shapes))
    made = [op.type for op in graph.get_operations()]
  kept = "".join(d for d in wanted if d in given)
  expected = np.einsum(f"{given}->{kept}", x)
  if given:
    expected = expected.reshape(
        [sizes[d] if d in given else 1 for d in wanted])
  np.testing.assert_array_equal(found, expected)
  assert made.count("Transpose") == transposes


def test_dimensions_are_never_lost():
  a, b = mtf.Dimension("a", 2), mtf.Dimension("b", 3)
  with pytest.raises(ValueError):
    mtf.ops._expand_dims(tf.zeros([2, 3]), mtf.Shape([a, b]), mtf.Shape([a]))


def test_relu_gradient_in_another_order():
  # By hand: the loss is the sum of squares of max(w, relu(x)) with w = 1/2, so
  # its gradient is 2 x where x > 1/2. The maximum has w's order of dimensions.
  mesh, a, b = mtf.Mesh(mtf.Graph(), "mesh"), *(
      mtf.Dimension(name, 2) for name in "ab")
  x = constant(mesh, np.float32([[1, -1], [2, 3]]), [a, b])
  w = constant(mesh, np.float32([[.5, .5], [.5, .5]]), [b, a])
  dx, = mtf.gradients(
      [mtf.reduce_sum(mtf.square(mtf.maximum(w, mtf.relu(x))))], [x])
  dx = mtf.transpose(dx, mtf.Shape([a, b]))
  found, = evaluate(lower(mesh), [dx])
  np.testing.assert_array_equal(found, [[2, 0], [4, 6]])


@pytest.mark.parametrize("mesh_shape", ["", "a:2"])
def test_relu_has_the_gradient_of_its_output(mesh_shape):
  mesh, dims = mtf.Mesh(mtf.Graph(), "mesh"), [mtf.Dimension("a", 4)]
  x = constant(mesh, np.float32([-1, 0, 2, 3]), dims)
  dx, = mtf.gradients([mtf.reduce_sum(mtf.relu(x) * constant(
      mesh, np.float32([5, 6, 7, 8]), dims))], [x])
  lowering = lower(mesh, mesh_shape, "a:a" if mesh_shape else "")
  found, = evaluate(lowering, [dx])
  np.testing.assert_array_equal(found, [0, 0, 7, 8])
  kinds = {op.type for op in tf.get_default_graph().get_operations()}
  assert "ReluGrad" in kinds and "Greater" not in kinds


def test_gradients_are_computed_where_their_slices_are():
  # d of two outputs, x * y and its sin, by hand: dx = y (1 + cos(x y)) and
  # dy = x (1 + cos(x y)); with a custom gradient in between that doubles them.
  @tf.custom_gradient
  def same(x):
    return tf.identity(x), lambda dy: 2.0 * dy

  def fn(x, y):
    return same(x * y), tf.sin(same(x * y))

  mesh, dim = mtf.Mesh(mtf.Graph(), "mesh"), mtf.Dimension("a", 2)
  values = np.float32([1, 2]), np.float32([3, 5])
  x, y = (constant(mesh, value, [dim]) for value in values)
  both = mtf.slicewise(fn, [x, y], output_shape=[x.shape] * 2,
                       output_dtype=[tf.float32] * 2, splittable_dims=[dim])
  gradients = mtf.gradients([mtf.reduce_sum(mtf.add_n(both))], [x, y])
  found = evaluate(lower(mesh, "a:2", "a:a"), gradients)
  doubled = 2 * (1 + np.cos(values[0] * values[1]))
  np.testing.assert_allclose(
      found, [values[1] * doubled, values[0] * doubled], rtol=1e-5)
  devices = [f"/job:worker/task:{task}/device:CPU:0" for task in range(2)]
  before = set(tf.get_default_graph().get_operations())
  mtf.Lowering(mesh.graph, {
      mesh: mtf.placement_mesh_impl.PlacementMeshImpl("a:2", "a:a", devices)})
  made = [op for op in tf.get_default_graph().get_operations()
          if op not in before and "generic_grad" in op.name]
  for device in devices:
    assert any(op.type == "Cos" and op.device == device for op in made)
  assert {op.device for op in made} == set(devices)


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


# As a Scaffold is by default, and as mesh_tensorflow makes it for prediction.
@pytest.mark.parametrize("local_init_op", [
    lambda: None, tf.train.Scaffold.default_local_init_op])
@pytest.mark.parametrize("data", [tf.data, tf.compat.v2.data])
def test_data_is_read_before_it_is_asked_for(local_init_op, data):
  read = threading.Event()

  def tell(x):
    read.set()
    return x

  def made():
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.range(5, dtype=tf.int64), tf.range(5, dtype=tf.int64) * 10), -1)
    return data.Dataset.range(5).map(
        lambda x: tf.numpy_function(tell, [table.lookup(x)], tf.int64)
    ).prefetch(1)

  with tf.Graph().as_default():
    features, labels, hooks = estimator_util.parse_input_fn_result(made())
    assert labels is None
    creator = tf.train.ChiefSessionCreator(
        tf.train.Scaffold(local_init_op=local_init_op()))
    with tf.train.MonitoredSession(creator, hooks=hooks) as session:
      assert read.wait(timeout=30)
      # The table was filled before it was read.
      assert [session.run(features) for _ in range(5)] == [0, 10, 20, 30, 40]


def test_graph_is_written(tmp_path):
  with tf.Graph().as_default() as graph:
    tf.constant(1.5, name="one_and_a_half")
  training_util.write_graph(graph.as_graph_def(), str(tmp_path), "g.pbtxt")
  for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
      thread.join()
  assert text_format.Parse(
      (tmp_path / "g.pbtxt").read_text(), tf.GraphDef()) == graph.as_graph_def()
