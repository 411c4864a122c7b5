"""Builds our model and upstream's the way `run_t5.py` builds a run.

Both are built by `utils.tpu_estimator_model_fn` from the gin files of
`benchmarks/gin/`, with random ids as data.
"""

from switch_mtf.upstream import fixes  # isort:skip  (before tensorflow)

import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import gin
import mesh_tensorflow as mtf
import numpy as np
import psutil
import seqio
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils
from t5.models import mesh_transformer_main

from benchmarks import balance, trace
from benchmarks.spec import Spec, Subject

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
T5_GIN = os.path.join(os.path.dirname(mesh_transformer_main.__file__), "gin")
ModeKeys = tf.estimator.ModeKeys


class MeshSubject(Subject):
  """A finished graph in its own session."""

  def __init__(self, session: tf.Session, fetch, facts: dict):
    """Records the session and the tensors that one step fetches."""
    self.session = session
    self.fetch = fetch
    self.facts = facts

  def step(self) -> None:
    """See the base class."""
    self.session.run(self.fetch)

  def profile(self) -> dict[str, Any]:
    """See the base class."""
    traced = tf.RunMetadata()
    self.session.run(self.fetch, options=tf.RunOptions(
        trace_level=tf.RunOptions.FULL_TRACE), run_metadata=traced)
    return trace.summary(traced.step_stats, self.session.graph)


def rss_mb() -> float:
  """Returns the resident memory of this process, in MB."""
  return psutil.Process().memory_info().rss / 1e6


def build(
    spec: Spec, devices: Sequence[str] | None = None, target: str = "",
) -> MeshSubject:
  """Builds the graph and initialises the variables.

  Args:
    spec: model and task, with subject "ours" or "upstream".
    devices: devices of the mesh's processors; this process's CPU by default.
    target: address of the session's server; this process by default.

  Returns:
    The model as a subject.
  """
  tf.disable_v2_behavior()
  fixes.use_resource_variables()
  tf.set_random_seed(0)
  _configure(spec)
  rss = {"libraries": rss_mb()}
  fetch, hooks = _graph(spec, devices)
  sums = _checksums() if spec.task == "train" else None
  rss["graph"] = rss_mb()
  session = tf.Session(target)
  session.run(tf.global_variables_initializer())
  for hook in hooks:
    if isinstance(hook, mtf.MtfRestoreHook):
      hook.begin()
      hook.after_create_session(session, None)
  rss["variables"] = rss_mb()
  facts = {"rss_mb": rss, "parameters": sum(
      v.shape.num_elements() for v in tf.trainable_variables())}
  if spec.task == "train":
    facts |= _what_a_step_updates(session, fetch, sums)
  return MeshSubject(session, fetch, facts)


def _configure(spec: Spec) -> None:
  """Parses the gin files and binds the sizes of the spec."""
  name = "dense" if spec.experts == 1 else spec.subject
  bindings = [
      f"Bitransformer.decode.max_decode_length = {spec.targets}",
      "Unitransformer.sample_autoregressive.never_end = True"]
  if spec.experts > 1:
    # Smaller groups, so that each processor has whole ones.
    bindings += [f"num_experts = {spec.experts}",
                 f"capacity_factor = {spec.capacity_factor}",
                 f"group_size = {spec.group_size // spec.processors}"]
  for folder in (ROOT, T5_GIN):
    gin.add_config_file_search_path(folder)
  defaults = os.path.join(
      os.path.dirname(utils.__file__), "gin", "defaults.gin")
  files = [defaults, f"benchmarks/gin/{name}.gin"]
  if spec.subject == "upstream":
    files.append("benchmarks/gin/as_t5.gin")
  gin.parse_config_files_and_bindings(files, bindings)


class Ids(seqio.PassThroughVocabulary):
  """A stand-in vocabulary with which decoding does not turn ids into text."""


class GradientsOnly(mtf.optimize.Optimizer):
  """An optimizer that computes the gradients and updates no weights."""

  def __init__(self, learning_rate):
    """Accepts the argument of every optimizer and ignores it."""

  def apply_grads(
      self, grads: list[mtf.Tensor | None], variables: list[mtf.Variable]
  ) -> list[mtf.Operation]:
    """Stores a sum of one entry per gradient, so that all are computed."""
    mesh = variables[0].mesh
    one = mtf.Dimension("one", 1)
    kept = mtf.get_variable(mesh, "one_of_each", [one], trainable=False,
                            initializer=tf.zeros_initializer())
    firsts = [
        mtf.slicewise(lambda g: tf.reshape(g, [-1])[:1], [grad],
                      output_shape=[one], splittable_dims=[])
        for grad in grads if grad is not None]
    return [mtf.assign(kept, mtf.add_n(firsts))]


def _graph(spec: Spec, devices: Sequence[str] | None):
  """Builds the graph; returns what a step fetches, and the session's hooks."""
  mesh_shape = mtf.convert_to_shape(
      f"batch:{spec.processors}" if spec.processors > 1 else "")
  layout = mtf.convert_to_layout_rules("batch:batch,experts:batch")
  lengths = {"inputs": spec.inputs, "targets": spec.targets}
  model = utils.build_model(
      "bitransformer", spec.vocabulary, spec.vocabulary, layout, mesh_shape)
  mode = ModeKeys.PREDICT if spec.task == "decode" else ModeKeys.TRAIN
  optimizer = gin.query_parameter("utils.run.optimizer").configurable.wrapper
  if spec.task == "forward_backward":
    optimizer = GradientsOnly
  model_fn = utils.tpu_estimator_model_fn(
      "bitransformer", model, (Ids(9), Ids(9)),
      model_dir=tempfile.gettempdir(), use_tpu=False,
      mesh_shape=mesh_shape, layout_rules=layout, batch_size=spec.batch,
      sequence_length=lengths, autostack=False, keep_checkpoint_max=1,
      save_checkpoints_steps=10**9, mesh_devices=devices,
      learning_rate_schedule=1e-3, optimizer=optimizer)
  tf.train.get_or_create_global_step()
  with (balance.balanced_upstream() if spec.subject == "upstream"
        else contextlib.nullcontext()):
    made = model_fn(_features(spec, lengths), None, mode)
  if spec.task == "decode":
    return made.predictions["outputs"], made.prediction_hooks
  return made.train_op, [*made.training_hooks, *made.training_chief_hooks]


def _features(spec: Spec, lengths: dict) -> dict[str, tf.Tensor]:
  """Returns random ids without padding.

  They come from a data set, so that TensorFlow cannot fold them as constants.
  """
  rng = np.random.default_rng(0)
  names = ["inputs"] if spec.task == "decode" else ["inputs", "targets"]
  ids = {name: rng.integers(
      2, spec.vocabulary, [spec.batch, lengths[name]], np.int32)
      for name in names}
  data = tf.data.Dataset.from_tensors(ids).repeat()
  return tf.data.make_one_shot_iterator(data).get_next()


def _checksums() -> list[tf.Tensor]:
  """Returns, per variable, one sum for each of its matrices.

  A variable without matrices has a single sum. The sums are of the entries'
  bits, as integers, so they are exact and differ if one entry does.
  """
  return [tf.reduce_sum(tf.bitcast(v, tf.int32), (-1, -2)[:v.shape.rank])
          for v in tf.trainable_variables()]


def _what_a_step_updates(session: tf.Session, fetch, sums) -> dict:
  """Runs a step and counts the parameters and experts that it updates."""
  before = session.run(sums)
  session.run(fetch)
  updated, experts = 0, []
  for v, old, new in zip(
      tf.trainable_variables(), before, session.run(sums), strict=True):
    updated += v.shape.num_elements() * np.mean(old != new)
    if v.shape.rank == 3:
      experts.append(int(np.sum(old != new)))
  facts = {"updated_parameters": round(updated)}
  if experts:
    facts["updated_experts"] = {"min": min(experts), "max": max(experts)}
  return facts
