import functools
import math

import mesh_tensorflow as mtf
import numpy as np
import pytest
from conftest import BuiltLayer, random_weights

from switch_mtf.dims import expert_capacity
from switch_mtf.layers.dispatch import EinsumDispatcher, GatherDispatcher
from switch_mtf.layers.exploration import InputJitter
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN

TOLERANCE = 1e-5
DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}
EXPERTS, HIDDEN, MODEL, GROUP = 4, 12, 6, 4
CAPACITY = expert_capacity(GROUP, EXPERTS, 1.25, 1)

# 32 tokens in 8 groups; with expert replication 4 groups on each of 2 replicas.
PLAIN = f"batch:8,length:4,d_model:{MODEL}"
REPLICAS = f"outer_batch:2,batch:4,length:4,d_model:{MODEL}"

# mesh, layout, shape of x.
LAYOUTS = {
    "data": ("a:4;b:1", "batch:a", PLAIN),
    "experts": ("a:4;b:1", "experts:a", PLAIN),
    "model": ("a:4;b:1", "d_ff:a", PLAIN),
    "data and experts": ("a:4;b:1", "batch:a;experts:a", PLAIN),
    "data, experts, model": ("a:2;b:2", "batch:a;experts:a;d_ff:b", PLAIN),
    "the same, axes swapped": ("a:2;b:2", "batch:b;experts:b;d_ff:a", PLAIN),
    "data, model": ("a:2;b:2", "batch:a;d_ff:b", PLAIN),
    "data apart from experts": ("a:2;b:2", "batch:a;experts:b", PLAIN),
    "replicas": ("o:2;a:2", "outer_batch:o;batch:a;experts:a", REPLICAS),
    "replicas, data": ("o:2;a:2", "outer_batch:o;batch:a", REPLICAS),
    "replicas, model": ("o:2;a:2", "outer_batch:o;d_ff:a", REPLICAS),
}

# Where the groups and the experts are split over the same axis: that axis, and
# how many processors hold a copy of each slot.
ALL_TO_ALL = {
    "data and experts": (0, 1),
    "data, experts, model": (0, 2),
    "the same, axes swapped": (1, 2),
    "replicas": (1, 1),
}


@functools.cache
def build(dispatcher, mesh_shape="", layout="", shape=PLAIN, mode="train",
          gradients=True):
  layer = SwitchFFN(
      num_experts=EXPERTS, hidden_size=HIDDEN, group_size=GROUP,
      capacity_factor_train=1.25, capacity_factor_eval=1.25, min_capacity=1,
      dropout_rate=.3, load_balancing_coef=1.0, router=SwitchRouter(InputJitter(.2)),
      dispatcher=DISPATCHERS[dispatcher]())
  return BuiltLayer(layer, shape, mode=mode, mesh_shape=mesh_shape,
                    layout=layout, gradients=gradients)


@functools.cache
def run(*args, **kwargs):
  """The results for the same tokens, some of them padding, at step 3."""
  rng = np.random.default_rng(1)
  layer = build(*args, **kwargs)
  shape = mtf.convert_to_shape(args[3] if len(args) > 3 else PLAIN)
  size = shape.to_integer_list
  x, dy = rng.normal(size=[2, *size])
  real = rng.uniform(size=size[:-1]) < .8
  real.reshape(-1, GROUP)[5] = False
  return layer(random_weights(rng, model=MODEL, hidden=HIDDEN, experts=EXPERTS),
               x, real, dy, step=3)


def check_equal(found, right):
  assert set(found) == set(right)
  for name in found:
    np.testing.assert_allclose(
        found[name].reshape(right[name].shape), right[name], atol=TOLERANCE,
        rtol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_numbers_as_on_one_processor(name, dispatcher):
  # Training: outputs, loss, metrics, every gradient, with jitter and expert
  # dropout. What is right is what one processor and one-hot masks find.
  mesh_shape, layout, shape = LAYOUTS[name]
  check_equal(run(dispatcher, mesh_shape, layout, shape),
              run("einsum", "", "", shape))


def test_replication_changes_nothing():
  # 2 replicas of the experts with 4 groups each, or 8 groups on one.
  check_equal(run("gather", "", "", REPLICAS), run("gather", "", "", PLAIN))


def test_something_is_tested():
  # Tokens are dropped, there is padding, and noise: another step differs.
  found = run("einsum", "", "", PLAIN)
  assert .05 < found["dropped_fraction"] < .95
  assert all(np.abs(v).max() > 1e-2 for name, v in found.items()
             if name != "dead_experts")
  rng = np.random.default_rng(1)
  other = build("einsum", "", "", PLAIN)(
      random_weights(rng, model=MODEL, hidden=HIDDEN, experts=EXPERTS),
      rng.normal(size=[8, 4, MODEL]))
  assert (other["y"] != found["y"]).any()


# Communication.


def collectives(layer):
  """Those that move slots or tokens; sums over a mesh axis are all-reduces."""
  return [(name, size) for name, size in layer.counters
          if name.startswith(("alltoall", "allconcat", "shift"))]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", ALL_TO_ALL)
def test_two_all_to_alls_a_forward_pass(name, dispatcher):
  # Upstream's ReshapeOperation.lower counts one all-to-all as
  # mesh_impl.laid_out_size(old shape): the size of a slice times the number of
  # processors. The slots E C M of all groups are split over the axes of the
  # groups (and of outer_batch), and every processor along another axis holds a
  # copy: E C M * groups * copies.
  mesh_shape, layout, shape = LAYOUTS[name]
  axis, copies = ALL_TO_ALL[name]
  layer = build(dispatcher, mesh_shape, layout, shape, "eval", False)
  groups = 8  # 32 tokens / 4, replicas included
  size = EXPERTS * CAPACITY * MODEL * groups * copies
  assert collectives(layer) == [(f"alltoall/{axis}/reshape_op", size)] * 2


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_two_more_in_the_backward_pass(dispatcher):
  # The gradient of an all-to-all is one of the same size, back.
  layer = build(dispatcher, *LAYOUTS["data and experts"])
  size = EXPERTS * CAPACITY * MODEL * 8
  assert collectives(layer) == [("alltoall/0/reshape_op", size)] * 4


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ALL_TO_ALL])
def test_no_all_to_all_otherwise(name, dispatcher):
  layer = build(dispatcher, *LAYOUTS[name])
  assert not [c for c in collectives(layer) if c[0].startswith("alltoall")]


@pytest.mark.parametrize("name", [
    "data", "model", "data, model", "replicas, data", "replicas, model"])
def test_no_communication_of_tokens_where_experts_are_whole(name):
  # Each processor has its groups and all experts (or a part of each).
  assert collectives(build("gather", *LAYOUTS[name])) == []


@pytest.mark.parametrize("name", [n for n in LAYOUTS if "model" in n])
def test_hidden_units_are_split(name):
  # Expert matmuls [E, X, M] x [E, M, F] are counted over all processors, each
  # as large as all its dimensions: E C groups M F where everything is split,
  # times the copies. Were d_ff not split, "model" would count 4 times that. No
  # other product has as many: the next are 32 M E = 768, times the copies.
  mesh_shape, layout, shape = LAYOUTS[name]
  layer = build("gather", mesh_shape, layout, shape)
  rules = dict(rule.split(":") for rule in layout.split(";"))
  ways = {a: mtf.convert_to_shape(mesh_shape).get_dim_by_name(a).size
          for a in mesh_shape.replace(";", ":").split(":")[::2]}
  split = {rules[d] for d in ("experts", "d_ff", "outer_batch", "batch")
           if d in rules}
  copies = math.prod(ways[a] for a in ways if a not in split)
  product = EXPERTS * CAPACITY * 8 * MODEL * HIDDEN
  # Two matmuls forward, two for each backward.
  counted = [n for k, n in layer.counters if k == "einsum"]
  assert counted.count(product * copies) == 6
