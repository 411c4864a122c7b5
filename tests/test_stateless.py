import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import evaluate, lower

from switch_mtf.layers import stateless

# Draws are fixed by their inputs, so that a test of a distribution passes or
# fails for good; the bounds are those of 1 draw in 1000 or rarer, each.
N = 2**16
SHAPE = "a:4,b:8,c:2048"  # N numbers


@pytest.fixture
def seed():
  """Sets the seed, as a gin file would."""
  def bind(value):
    gin.bind_parameter("random_seed.value", value)
  yield bind
  gin.clear_config()


def draw(shape=SHAPE, purpose="test", *, scope="layer", step=0, mesh_shape="",
         layout=""):
  """Numbers as an array of `shape`."""
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    tf.train.create_global_step()
    with tf.variable_scope(scope):
      u = stateless.uniform(mesh, mtf.convert_to_shape(shape).dims, purpose)
    u_step = tf.train.get_global_step()
    found, = evaluate(lower(mesh, mesh_shape, layout), [u],
                      {u_step.op.name: step})
    return found


CHANGES = {
    "as it is": {}, "another purpose": {"purpose": "jitter"},
    "another scope": {"scope": "encoder/block_003/layer_001/SwitchFFN"},
    "next step": {"step": 1}, "late step": {"step": 524288},
}
each_change = pytest.mark.parametrize("change", CHANGES)


@each_change
def test_uniform(change):
  u = draw(**CHANGES[change]).reshape(-1).astype(np.float64)
  assert u.min() >= 0 and u.max() < 1
  # Multiples of 2^-24.
  assert (u * 2**24 == np.floor(u * 2**24)).all()
  # U(0, 1): mean 1/2 with standard deviation sqrt(1/12/N); variance 1/12 with
  # sqrt((1/80 - 1/144) / N), as the fourth central moment is 1/80.
  assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / N)
  assert abs(u.var() - 1 / 12) < 4 * np.sqrt((1 / 80 - 1 / 144) / N)
  # 16 bins: chi-square with 15 degrees of freedom, 99.9 % below 37.7.
  counts = np.bincount((u * 16).astype(int), minlength=16)
  assert ((counts - N / 16)**2 / (N / 16)).sum() < 37.7


@each_change
@pytest.mark.parametrize("lag", [1, 2, 2048, 8 * 2048])
def test_neighbours_are_independent(change, lag):
  # Along each axis (their strides are 1, 2048, 8 * 2048): the correlation of n
  # independent pairs has standard deviation 1 / sqrt(n).
  u = draw(**CHANGES[change]).reshape(-1)
  r = np.corrcoef(u[:-lag], u[lag:])[0, 1]
  assert abs(r) < 4 / np.sqrt(N - lag)


def test_low_bits_are_uniform():
  # The last 4 of 24 bits, by the same chi-square.
  low = (draw().reshape(-1) * 2**24).astype(int) % 16
  counts = np.bincount(low, minlength=16)
  assert ((counts - N / 16)**2 / (N / 16)).sum() < 37.7


def check_unrelated(u, v):
  """Different numbers, without correlation."""
  u, v = u.reshape(-1), v.reshape(-1)
  # Of N pairs with 2^24 values each about N / 2^24 = 0.004 agree.
  assert (u == v).sum() <= 2
  assert abs(np.corrcoef(u, v)[0, 1]) < 4 / np.sqrt(N)


@pytest.mark.parametrize("change", [c for c in CHANGES if CHANGES[c]])
def test_differs(change):
  check_unrelated(draw(), draw(**CHANGES[change]))


@pytest.mark.parametrize("value", [1, 2, 12345, 2**31, -1])
def test_differs_by_seed(seed, value):
  before = draw()
  seed(value)
  check_unrelated(before, draw())


def test_step_and_seed_are_not_added_up(seed):
  # Seed 1 at step 0 is not seed 0 at step 1: two runs with neighbouring seeds
  # would draw the same numbers, a step apart.
  next_step = draw(step=1)
  seed(1)
  check_unrelated(next_step, draw(step=0))


def test_same_inputs_same_numbers(seed):
  seed(3)
  np.testing.assert_array_equal(draw(step=7), draw(step=7))


def test_without_a_global_step(new_mesh):
  # Nobody counts: as at step 0.
  mesh = new_mesh()
  with tf.variable_scope("layer"):
    u = stateless.uniform(mesh, mtf.convert_to_shape(SHAPE).dims, "test")
  u, = evaluate(lower(mesh), [u])
  np.testing.assert_array_equal(u, draw())


@pytest.mark.parametrize("mesh_shape, layout", [
    ("x:4", "a:x"), ("x:4", "b:x"), ("x:4", "c:x"), ("x:2;y:2", "a:x;b:y"),
    ("x:2;y:2", "c:x;a:y"), ("x:2;y:2", "b:y"), ("x:2;y:2", ""),
    ("x:2;y:2;z:2", "a:z;b:x;c:y")])
def test_same_numbers_however_split(mesh_shape, layout):
  shape = "a:4,b:8,c:12"
  np.testing.assert_array_equal(
      draw(shape, step=5, mesh_shape=mesh_shape, layout=layout),
      draw(shape, step=5))


def test_a_number_belongs_to_its_index():
  # The first axis may grow: a larger batch begins with the smaller one's.
  np.testing.assert_array_equal(draw("a:8,b:3")[:4], draw("a:4,b:3"))


def test_not_differentiable(new_mesh):
  # It is noise: the gradient is that of a constant.
  mesh = new_mesh()
  dim = mtf.Dimension("a", 3)
  x = mtf.ones(mesh, mtf.Shape([dim]))
  u = stateless.uniform(mesh, [dim], "test")
  dx, = mtf.gradients([mtf.reduce_sum(x * u)], [x])
  dx, u = evaluate(lower(mesh), [dx, u])
  np.testing.assert_array_equal(dx, u)

# The draws of upstream's layers.


def draw_for_upstream(
    shape="a:4,b:8,c:256", *, scope="layer", step=0, number=None, count=1,
    mesh_shape="", layout="", **kwargs):
  """The last of `count` draws in `scope`, in microbatch `number`."""
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    tf.train.create_global_step()
    stateless.use_step()
    if number is not None:
      number = mtf.constant(mesh, number, dtype=tf.int32)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(stateless.training_step, "microbatch", lambda: number)
      with tf.variable_scope(scope):
        for _ in range(count):
          u = stateless.uniform_for_upstream(
              None, mesh, mtf.convert_to_shape(shape), **kwargs)
    found, = evaluate(lower(mesh, mesh_shape, layout), [u],
                      {tf.train.get_global_step().op.name: step})
    return found


def test_upstream_draws_are_uniform():
  u = draw_for_upstream(SHAPE, minval=2., maxval=4.).reshape(-1) / 2 - 1
  # As in test_uniform.
  assert u.min() >= 0 and u.max() < 1
  assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / N)
  counts = np.bincount((u * 16).astype(int), minlength=16)
  assert ((counts - N / 16)**2 / (N / 16)).sum() < 37.7


@pytest.mark.parametrize("change", [
    {"step": 1}, {"scope": "other"}, {"count": 2}, {"number": 1},
    {"number": 1, "step": 1}], ids=str)
def test_upstream_draws_differ(change):
  # Two draws of 8192 numbers with 23 bits have 0.001 in common.
  one, other = draw_for_upstream(number=0), draw_for_upstream(
      **{"number": 0, **change})
  assert (one == other).sum() <= 2


def test_upstream_draws_differ_by_seed(seed):
  one = draw_for_upstream()
  seed(1)
  assert (draw_for_upstream() == one).sum() <= 2


@pytest.mark.parametrize("layout", ["a:x", "b:x", "a:x;c:y", "c:x"])
def test_upstream_draws_are_the_same_however_split(layout):
  np.testing.assert_array_equal(
      draw_for_upstream(step=5, mesh_shape="x:2;y:2", layout=layout),
      draw_for_upstream(step=5))


def test_upstream_keeps_its_draws_where_no_step_counts(new_mesh):
  def upstream(mesh, shape, **kwargs):
    return mtf.constant(mesh, 0.25, shape)

  mesh = new_mesh()
  u = stateless.uniform_for_upstream(upstream, mesh, mtf.Shape([]))
  assert evaluate(lower(mesh), [u])[0] == 0.25
