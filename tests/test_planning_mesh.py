"""The planner's mesh counts what the real mesh communicates."""

import collections
from unittest import mock

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from helpers.plans import GROUP, STRATEGIES, TINY, planned
from mesh_tensorflow.transformer import utils

import tasks  # noqa: F401
from switch_mtf.planning import (
  configuration,
  graph,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def counters_of_a_run(mesh_shape, layout):
  """What `lowering.counters` of the real mesh implementation has, by kind."""
  config = configuration.resolve(
      [TINY], [GROUP, f"utils.run.layout_rules = '{layout}'"], device="cpu",
      mesh_shape=mesh_shape)
  lowerings = []

  class Lowering(mtf.Lowering):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      lowerings.append(self)

  with mock.patch.object(mtf, "Lowering", Lowering):
    tf.train.create_global_step()
    utils.tpu_estimator_model_fn(**config.arguments | {"model_dir": ""})(
        graph._features(config), None, "train", params={})
  found = collections.Counter()
  for name, size in lowerings[0].counters:
    kind, _, rest = name.partition("/")
    if kind in ("allreduce", "alltoall", "allconcat", "shift"):
      axes = sorted(int(a) for a in rest.split("/")[0].strip("[]").split(","))
      names = ",".join(config.mesh_shape.dims[a].name for a in axes)
      found[kind, names] += size
  return found, config.mesh_shape.size


@pytest.mark.parametrize("name", STRATEGIES)
def test_communication_is_that_of_the_run(name):
  mesh_shape, layout = STRATEGIES[name]
  expected, processors = counters_of_a_run(mesh_shape, layout)
  plan = planned(GROUP, mesh_shape=mesh_shape, layout=layout)
  assert {(entry["kind"], entry["mesh_axis"]): entry["elements"] * processors
          for entry in plan.communication} == expected
  assert expected
  for entry in plan.communication:  # float32, beside scalars of counts
    assert entry["bytes"] == 4 * entry["elements"]
  assert ("alltoall", "batch") in expected or "expert" not in name
