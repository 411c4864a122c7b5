"""Adafactor in few passes against upstream's, and its sums against NumPy."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import lower
from mesh_tensorflow import optimize

from switch_mtf.kernels import adafactor
from switch_mtf.kernels.adafactor import FewPassAdafactor

LARGE = {
    "dense": "d_model:256,d_ff:128", "wi": "experts:4,d_model:128,d_ff:256"}
SMALL = {
    "dense": "d_model:16,d_ff:8", "wi": "experts:4,d_model:8,d_ff:16",
    "many": "experts:20,d_model:8,d_ff:10", "square": "d_model:8,d_ff:8",
    "vector": "d_model:16", "little": "d_model:4,d_ff:16"}


def gradient(rng, shape, step):
  """Of another size each step: one huge, now and then none for an expert."""
  value = rng.normal(size=shape).astype(np.float32)
  value *= 1e3 if step in (0, 20) else 10.0**rng.uniform(-3, 1)
  if len(shape) == 3:
    value[1] = 0  # never chosen
    value[2] *= step % 3 == 0
  return value


def train(cls, shapes, *, steps=50, mesh_shape="", layout="", **options):
  """All variables by name, slots too, after some steps."""
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    step = tf.train.get_or_create_global_step()
    variables, grads, feeds = [], [], []
    for name, shape in shapes.items():
      shape = mtf.convert_to_shape(shape)
      variables.append(mtf.get_variable(mesh, name, shape).operation)
      feeds.append(tf.placeholder(tf.float32, shape.to_integer_list))
      grads.append(mtf.import_tf_tensor(mesh, feeds[-1], shape))
    updates = cls(**options).apply_grads(grads, variables)
    lowering = lower(mesh, mesh_shape, layout)
    update = tf.group(*(lowering.lowered_operation(op) for op in updates))
    next_step, rng = tf.assign_add(step, 1), np.random.default_rng(0)
    with tf.Session() as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        if variable.op.name in shapes:
          variable.load(rng.normal(size=variable.shape.as_list()), session)
      session.run(lowering.copy_masters_to_slices())
      for i in range(steps):
        session.run(update, {
            x: gradient(rng, x.shape.as_list(), i) for x in feeds})
        session.run(next_step)
      session.run(lowering.copy_slices_to_masters())
      return session.run({v.op.name: v for v in tf.global_variables()
                          if "slice" not in v.op.name})


def check_same(found, expected):
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert np.isfinite(value).all()
    # A weight may come to lie near 0; what it started from does not.
    atol = 0 if "slot" in name else 1e-5
    np.testing.assert_allclose(
        found[name], value, rtol=1e-5, atol=atol, err_msg=name)


@pytest.fixture
def updated(monkeypatch):
  """The shapes of the variables that few passes update."""
  found, sums = [], adafactor.row_and_column_sums

  def row_and_column_sums(x):
    found.append(x.shape.as_list())
    return sums(x)

  monkeypatch.setattr(adafactor, "row_and_column_sums", row_and_column_sums)
  return found


# Of SMALL the last two dimensions are the largest two, both at least 8, of
# dense, wi and square. With 9 no variable is left; many has 20 experts.
FACTORED = [[16, 8], [4, 8, 16], [8, 8]]


@pytest.mark.parametrize("options", [
    {}, {"multiply_by_parameter_scale": False}, {"clipping_threshold": None},
    {"exclude_from_parameter_scale": ["wi", "dense"]},
    {"learning_rate": .1}], ids=str)
def test_same_as_upstream(options, updated):
  options = {"min_dim_size_to_factor": 8, **options}
  found = train(FewPassAdafactor, SMALL, **options)
  assert updated == FACTORED
  check_same(found, train(optimize.AdafactorOptimizer, SMALL, **options))


@pytest.mark.parametrize("options", [
    {"beta1": .9}, {"factored": False}, {"stacked_dim_names": ["experts"]},
    {"min_dim_size_to_factor": 9}], ids=str)
def test_what_is_left_to_upstream(options, updated):
  # The slots are upstream's, too: of each of the options other ones.
  options = {"min_dim_size_to_factor": 8, **options}
  found = train(FewPassAdafactor, SMALL, steps=2, **options)
  assert updated == []
  check_same(found, train(
      optimize.AdafactorOptimizer, SMALL, steps=2, **options))


@pytest.mark.parametrize("shapes,steps", [
    (LARGE, 50), ({"many": "experts:200,d_model:128,d_ff:130"}, 3)])
def test_at_the_size_that_is_factored_by_default(shapes, steps):
  found = train(FewPassAdafactor, shapes, steps=steps)
  check_same(found, train(optimize.AdafactorOptimizer, shapes, steps=steps))
  assert set(found) == {"global_step", *shapes, *(
      f"{name}_slot_{slot}" for name in shapes for slot in ("vr", "vc"))}


@pytest.mark.parametrize("layout", ["experts:a", "d_ff:a", "d_model:a"])
def test_on_a_mesh(layout, updated):
  options = {"min_dim_size_to_factor": 8}
  check_same(
      train(FewPassAdafactor, SMALL, mesh_shape="a:2", layout=layout,
            **options),
      train(optimize.AdafactorOptimizer, SMALL, **options))
  assert len(updated) == 2 * len(FACTORED)  # a slice on each processor


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
