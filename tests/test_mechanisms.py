"""Each mechanism has a small experiment, and the experiment trains."""

import re

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import ROOT, as_it_is
from mesh_tensorflow.transformer import utils

import tasks  # noqa: F401
from switch_mtf.planning import configuration

FOLDER = "gin/experiments/mechanisms"
FILES = sorted(path.stem for path in (ROOT / FOLDER).glob("[!_]*.gin"))
SMALL = ["batch_size = 32", "train_then.phases = []"]


def batch(config):
  """Random tokens in the shape of a run's batches."""
  rng = np.random.default_rng(0)
  found = {}
  for name, length in config.sequence_length.items():
    shape = [config.batch_size, length]
    found[name] = tf.constant(rng.integers(2, 1000, shape), tf.int32)
    found[f"{name}_segmentation"] = tf.ones(shape, tf.int32)
    found[f"{name}_position"] = tf.tile(
        tf.range(length)[None], [config.batch_size, 1])
  return found


@pytest.mark.parametrize("name", FILES)
def test_it_trains(name, clean_gin, loops_of_t5):
  config = configuration.resolve(
      [f"{FOLDER}/{name}.gin"], SMALL, device="cpu")
  step = tf.train.create_global_step()
  spec = utils.tpu_estimator_model_fn(**config.arguments | {"model_dir": ""})(
      batch(config), None, "train", params={})
  with tf.Session(config=as_it_is()) as session:
    session.run(tf.global_variables_initializer())
    restore, = (hook for hook in spec.training_chief_hooks
                if isinstance(hook, mtf.MtfRestoreHook))
    restore.begin()
    restore.after_create_session(session, None)
    losses = [session.run([spec.loss, spec.train_op])[0] for _ in range(5)]
    assert session.run(step) == 5
  # The same batch again and again: the model learns it.
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_every_router_and_exploration_has_one():
  bound = "".join((ROOT / FOLDER / f"{name}.gin").read_text() for name in FILES)
  # demo_switch.gin has the router and the noise of the paper; Top2Router has
  # its policy of training, and of evaluation, by default.
  default = {"SwitchRouter", "InputJitter", "AlwaysSecond"}
  defined = re.findall(
      r"@gin.configurable\nclass (\w+)", "".join(
          (ROOT / f"switch_mtf/layers/{name}.py").read_text()
          for name in ("routers", "routing", "exploration")))
  assert len(defined) >= 10
  for name in set(defined) - default:
    assert re.search(rf"\b{name}\b", bound), name
