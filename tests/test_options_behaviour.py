"""What docs/options.md says that options do."""

import functools
import re
from collections import Counter

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import (
  BuiltLayer,
  make_context,
  random_weights,
  recorded_metrics,
)
from helpers.options_page import CONFIGURABLES, GIN, TOKENS, code, parse, table
from mesh_tensorflow.transformer import utils

from switch_mtf.dims import MoeDims, expert_capacity
from switch_mtf.layers import dispatch, routing
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.initialization import kernel_initializer
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

pytestmark = pytest.mark.usefixtures("clean_gin")

# What the tables say of interactions, where a few lines can tell.


def test_bindings_reach_the_objects_that_none_stands_for():
  parse("SwitchRouter.prioritized = True\nInputJitter.epsilon = .5\n"
        "RandomSecond.threshold = .75")
  assert SwitchFFN().router.prioritized
  assert SwitchFFN().router.exploration.epsilon == .5
  router = CONFIGURABLES["Top2Router"]()
  assert router.exploration.epsilon == .5
  assert router.second_train.threshold == .75


def test_bindings_that_reach_switch_attention():
  parse("SelfAttention.z_loss_coeff = .5\nSelfAttention.num_heads = 3\n"
        "SwitchFFN.group_size = 16\nencoder/SwitchFFN.num_experts = 5")
  with gin.config_scope("encoder"):
    layer = SwitchSelfAttention()
  assert layer.z_loss_coeff == .5 and layer.num_heads == 8
  for projection in (layer.query_projection, layer.memory_projection):
    assert projection.group_size == 16
    assert projection.num_experts == 5
    assert projection.hidden_size is None
  parse("SwitchSelfAttention.projection = @attention/SwitchFFN\n"
        "attention/SwitchFFN.num_experts = 6")
  layer = SwitchSelfAttention()
  assert layer.query_projection.num_experts == 6
  assert layer.memory_projection.hidden_size == 2048


def test_t5s_bindings_do_not_reach_the_experts():
  parse("d_ff = 7\ndropout_rate = .5\nVarianceScalingInitializer.scale = 3.0")
  layer = SwitchFFN()
  assert (layer.hidden_size, layer.dropout_rate) == (2048, 0)
  assert kernel_initializer().scale == .1
  assert mtf.layers.VarianceScalingInitializer().scale == 3


@pytest.mark.parametrize("processors, legal", [(1, True), (2, False)])
def test_fewer_tokens_than_a_group(processors, legal):
  create = functools.partial(
      MoeDims.create, mtf.convert_to_shape(TOKENS), num_experts=2,
      hidden_size=1, group_size=32, capacity_factor=1.0, min_capacity=1,
      layout="batch:a", mesh_shape=f"a:{processors}")
  if legal:
    assert create().group_size_dim.size == 16
  else:
    with pytest.raises(ValueError, match="group_size must divide"):
      create()


# Precision.


@pytest.mark.parametrize(
    "mode, activations, router, moved",
    [row[:4] for row in table("Precision", "mode")])
def test_precision(mode, activations, router, moved, new_mesh, monkeypatch):
  fence, = [f for f in GIN if f.startswith(f"# precision: {mode}\n")]
  parse(fence)
  assert utils.get_variable_dtype().activation_dtype == activations
  seen = {"router": [], "moved": []}

  def watch(owner, name, kind):
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args):
      seen[kind].append(next(a.dtype for a in args if hasattr(a, "dtype")))
      return original(*args)

    monkeypatch.setattr(owner, name, watched)

  watch(routing.Router, "probabilities", "router")
  watch(dispatch, "to_experts_side", "moved")
  watch(dispatch, "to_groups_side", "moved")
  mesh = new_mesh()
  context = make_context(mesh)
  context.activation_dtype = tf.as_dtype(activations)
  context.variable_dtype = mtf.VariableDType(
      tf.float32, tf.float32, context.activation_dtype)
  x = mtf.zeros(mesh, mtf.convert_to_shape("batch:2,length:4,d_model:4"),
                dtype=context.activation_dtype)
  y = SwitchFFN(num_experts=2, hidden_size=4, group_size=8).call(context, x)
  assert y.dtype == activations
  assert seen["router"] == [router]
  assert seen["moved"] == [moved, moved]


# Layouts.

REPLICAS = "outer_batch:2,batch:2,length:4,d_model:6"
LAYOUTS = [[c.strip("`") for c in row[:2]] + row[2:]
           for row in table("Layouts", "`mesh_shape`")]
KINDS = {"all-to-all": "alltoall", "all-reduce": "allreduce",
         "all-gather": "allconcat"}


@functools.cache
def run_layer(mesh_shape="", layout="", shape=TOKENS):
  # Without noise, to be quick; test_layouts.py has it.
  layer = BuiltLayer(
      SwitchFFN(num_experts=4, hidden_size=8, group_size=4,
                router=routing.SwitchRouter(Argmax())),
      shape, mesh_shape=mesh_shape, layout=layout, gradients=True)
  rng = np.random.default_rng(0)
  x, dy = rng.normal(size=[2, *mtf.convert_to_shape(shape).to_integer_list])
  return layer, layer(random_weights(rng), x, dy=dy)


def communication(layer):
  """(kind, axes) to how often, without the sums of losses and metrics."""
  return Counter(
      (kind, frozenset(map(int, re.findall(r"\d+", axes))))
      for kind, axes, op in (name.split("/") for name, _ in layer.counters
                             if name.startswith(tuple(KINDS.values())))
      if op != "reduce_op")


@pytest.mark.parametrize("mesh_shape, rules, forward, gradients", LAYOUTS)
def test_layout(mesh_shape, rules, forward, gradients):
  axes = [d.name for d in mtf.convert_to_shape(mesh_shape)]
  said = Counter()
  for n, kind, axis in re.findall(
      r"(\d+) (all-[a-z-]+?)s? over `(\w+)`", forward):
    # The backward pass repeats it.
    said[KINDS[kind], frozenset([axes.index(axis)])] += 2 * int(n)
  for part in gradients.split("; ") if gradients != "none" else []:
    variables, over = map(code, part.split(" over "))
    said["allreduce", frozenset(map(axes.index, over))] += len(variables)
  assert forward == "none" or said
  shape = REPLICAS if "outer_batch" in rules else TOKENS
  layer, found = run_layer(mesh_shape, rules, shape)
  assert communication(layer) == said
  _, right = run_layer()
  for name, value in right.items():
    np.testing.assert_allclose(
        found[name].reshape(value.shape), value, atol=1e-5, rtol=1e-5,
        err_msg=name)


def test_layouts_use_the_rules_of_the_page():
  rules = {rule.split(":")[0]
           for _, layout, *_ in LAYOUTS for rule in layout.split(";")}
  assert rules == {
      row[0].strip("`").split(":")[0] for row in table("Layouts", "rule")}


def test_default_rules_are_those_of_the_page():
  # "batch and experts over the axis batch, d_ff over the axis model".
  parse("")
  rules = gin.query_parameter("utils.run.layout_rules")
  assert {"batch:batch", "experts:batch", "d_ff:model"} <= set(rules.split(","))


# Slots, metrics.


@pytest.mark.parametrize("row", table("Slots", "`group_size`"))
def test_slots(row):
  group, experts, factor, minimum, slots, effective = map(float, row)
  group, experts, minimum = map(int, (group, experts, minimum))
  assert expert_capacity(group, experts, factor, minimum) == slots
  assert slots * experts / group == pytest.approx(effective, abs=1e-9)


@pytest.mark.parametrize("router", ["SwitchRouter", "ExpertChoiceRouter"])
def test_metrics(router):
  layer = BuiltLayer(
      SwitchFFN(num_experts=3, hidden_size=4, group_size=4, router_z_coef=1.0,
                router=CONFIGURABLES[router]()), TOKENS, mode="eval")
  with layer.graph.as_default():
    found = {name.split("/")[-1]: "E" if value.shape == [3] else str(
        value.shape.num_elements())
             for name, value in recorded_metrics().items()}
  said = {name.strip("`"): size
          for name, size, meaning in table("Metrics", "name")
          if f"Not with `{router}`" not in meaning}
  assert found == said
