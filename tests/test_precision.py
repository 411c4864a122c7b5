"""Section 2.4, Table 2: float32, bfloat16, and selective precision."""

import collections

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import (
  constant,
  evaluate,
  lower,
  make_context,
  random_weights,
)

from switch_mtf.dims import MoeDims
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.routers import (
  ExpertChoiceRouter,
  NoTokenLeftBehindRouter,
  SecondAboveThreshold,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

MODEL, EXPERTS, GROUP = 6, 4, 8
ROUTERS = {
    "switch": lambda: SwitchRouter(float32=False),
    "top 2": lambda: Top2Router(float32=False),
    "top 2, threshold": lambda: Top2Router(
        float32=False, second_train=SecondAboveThreshold(),
        second_eval=SecondAboveThreshold()),
    "no token left behind": lambda: NoTokenLeftBehindRouter(float32=False),
    "expert choice": lambda: ExpertChoiceRouter(float32=False),
}
MESH, LAYOUT = "a:4", "batch:a;experts:a"
# Activations, and whether the router computes in float32.
MODES = {
    "float32": (tf.float32, True),
    "bfloat16": (tf.bfloat16, False),
    "selective": (tf.bfloat16, True),
}


def build(mode, dispatcher=GatherDispatcher):
  """The layer split over four processors, forward and backward."""
  dtype, float32 = MODES[mode]
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  context = make_context(
      mesh, layout=mtf.convert_to_layout_rules(LAYOUT),
      mesh_shape=mtf.convert_to_shape(MESH))
  context.variable_dtype = mtf.VariableDType(tf.float32, tf.float32, dtype)
  context.activation_dtype = dtype
  values = np.ones([8, 4, MODEL], np.float32)
  x = mtf.cast(constant(mesh, values, mtf.convert_to_shape(
      f"batch:8,length:4,d_model:{MODEL}").dims), dtype)
  layer = SwitchFFN(
      num_experts=EXPERTS, hidden_size=8, group_size=GROUP, min_capacity=1,
      router=SwitchRouter(Argmax(), float32=float32), dispatcher=dispatcher())
  y = layer.call(context, x)
  loss = mtf.reduce_sum(mtf.to_float(y)) + mtf.to_float(context.losses[0])
  weights = [v.outputs[0] for v in mesh.graph.trainable_variables]
  mtf.gradients([loss], [x, *weights])
  return mesh, y


def all_to_alls(mesh):
  """How many cross in which dtype, read off the graph."""
  sent = [op for op in mesh.graph.operations
          if isinstance(op, mtf.ops.ReshapeOperation) and crosses(op)]
  counted = [n for n, _ in lower(mesh, MESH, LAYOUT).counters
             if n.startswith("alltoall")]
  assert len(sent) == len(counted)  # none is missed
  return collections.Counter(op.inputs[0].dtype.name for op in sent)


def crosses(op):
  """Whether a reshape takes the split from the groups to the experts, or back.

  A dimension named in the layout is split, a partner "..._unsplit" is not.
  """
  def split(shape):
    return {d.name for d in shape.dims} & {"batch", "experts"}

  one, other = split(op.inputs[0].shape), split(op.outputs[0].shape)
  return {frozenset(one), frozenset(other)} == {
      frozenset({"batch"}), frozenset({"experts"})}


@pytest.mark.parametrize("dispatcher", [EinsumDispatcher, GatherDispatcher])
@pytest.mark.parametrize("mode, dtype", [
    ("float32", "float32"), ("bfloat16", "bfloat16"),
    ("selective", "bfloat16")])
def test_what_crosses_the_all_to_all(mode, dtype, dispatcher):
  # Two forward, two backward, all of them in the dtype of the activations: no
  # float32 tensor is sent in selective precision.
  mesh, _ = build(mode, dispatcher)
  assert all_to_alls(mesh) == {dtype: 4}


@pytest.mark.parametrize("mode", MODES)
def test_dtypes_of_the_router(mode):
  mesh, y = build(mode)
  dtype, float32 = MODES[mode]
  assert y.dtype == dtype
  logits, = [op.outputs[0] for op in mesh.graph.operations
             if op.outputs and len(op.inputs) == 2
             and op.inputs[1].shape.to_string == (
                 f"Shape[d_model={MODEL}, experts_unsplit={EXPERTS}]")
             and isinstance(op, mtf.ops.EinsumOperation)
             and op.outputs[0].shape.dims[-1].name == "experts_unsplit"]
  assert logits.dtype == (tf.float32 if float32 else dtype)


def test_selective_precision_routes_as_float32_does():
  # x is exact in bfloat16, so that the routers see the same numbers.
  found = {}
  weights = random_weights(np.random.default_rng(3), model=MODEL)
  for mode in ("float32", "selective"):
    with tf.Graph().as_default():
      dtype, float32 = MODES[mode]
      mesh = mtf.Mesh(mtf.Graph(), "mesh")
      context = make_context(mesh)
      context.variable_dtype = mtf.VariableDType(tf.float32, tf.float32, dtype)
      context.activation_dtype = dtype
      x = np.random.default_rng(1).integers(-8, 9, [4, 4, MODEL]) / 4
      x = mtf.cast(constant(mesh, x.astype(np.float32), mtf.convert_to_shape(
          f"batch:4,length:4,d_model:{MODEL}").dims), dtype)
      layer = SwitchFFN(
          num_experts=EXPERTS, hidden_size=8, group_size=GROUP, min_capacity=1,
          router=SwitchRouter(Argmax(), float32=float32))
      y = mtf.to_float(layer.call(context, x))
      loss = mtf.to_float(context.losses[0])
      found[mode], _ = evaluate(lower(mesh), [y, loss], weights)
  dropped = (found["float32"] == 0).all(axis=-1)
  np.testing.assert_array_equal(
      (found["selective"] == 0).all(axis=-1), dropped)
  assert 0 < dropped.mean() < 1
  # The experts compute in bfloat16, of 8 bits.
  np.testing.assert_allclose(
      found["selective"], found["float32"], atol=.05, rtol=.05)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("router", ["switch", "top 2", "top 2, threshold",
                                    "no token left behind", "expert choice"])
def test_every_router_computes_in_bfloat16_where_asked(router, train):
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = MoeDims.create(
      mtf.convert_to_shape(f"batch:2,length:{GROUP},d_model:{MODEL}"),
      num_experts=EXPERTS, hidden_size=8, group_size=GROUP,
      capacity_factor=1.0, min_capacity=1,
      num_choices=ROUTERS[router]().num_choices(EXPERTS))
  logits = mtf.cast(constant(mesh, np.random.default_rng(0).normal(
      size=[1, 2, GROUP, EXPERTS]).astype(np.float32), dims.OGSE), tf.bfloat16)
  routing = ROUTERS[router]().route(
      logits, mtf.ones(mesh, mtf.Shape(dims.OGS)), dims, train)
  assert routing.weight_OGSK.dtype == tf.float32
  weight, slot = evaluate(
      lower(mesh), [routing.weight_OGSK, routing.slot_OGSK])
  np.testing.assert_array_equal(weight > 0, slot < dims.capacity_dim.size)
  # Rounded to the 8 bits of bfloat16.
  np.testing.assert_array_equal(
      weight, tf.Session().run(
          tf.cast(tf.cast(weight, tf.bfloat16), tf.float32)))
