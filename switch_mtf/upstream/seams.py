"""Openings in upstream that training, distillation and planning are built on.

`open_model_fn` lets extensions run around every model graph;
`arguments_of_model_fn` and `graph_that_never_runs` are the planner's.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import gin
import tensorflow.compat.v1 as tf


@dataclasses.dataclass(frozen=True)
class ModelRun:
  """What is known of a run while its graph is built.

  Attributes:
    mode: "train", "eval" or "infer" (tf.estimator.ModeKeys).
    use_tpu: whether the graph is for TPU.
    model_dir: where checkpoints are, or None.
    tokens_per_step: tokens that one step reads, inputs and targets, with
      padding.
    mesh_shape: mtf.Shape of the mesh.
    layout_rules: mtf.LayoutRules of the run.
    keep_checkpoint_max: how many checkpoints the run keeps, None for all.
    init_checkpoint: that a new run starts from, without ".index", or None.
    init_variable_filter: a regular expression that its variables must match.
  """

  mode: str
  use_tpu: bool
  model_dir: str | None
  tokens_per_step: int
  mesh_shape: Any
  layout_rules: Any
  keep_checkpoint_max: int | None
  init_checkpoint: str | None = None
  init_variable_filter: str | None = None


class ModelFnExtension:
  """What may be done around mesh_tensorflow's `model_fn`; override any."""

  def before_graph(self, run: ModelRun) -> None:
    """Called in the new graph before the model is built."""

  def explain(self, run: ModelRun, error: Exception) -> Exception | None:
    """A better error for one that building the model raised, or None."""

  def finish(self, run: ModelRun, spec: Any) -> Any:
    """Changes the EstimatorSpec or TPUEstimatorSpec of the finished graph."""
    return spec


_extensions: list[ModelFnExtension] = []


def extend_model_fn(extension: ModelFnExtension) -> None:
  """Registers an extension; see `open_model_fn`."""
  _extensions.append(extension)


def open_model_fn() -> None:
  """Opens mesh_tensorflow's `model_fn` to extensions.

  `tpu_estimator_model_fn` prints one line a step through `tf.Print`, takes no
  hooks for evaluation or prediction and no random seed, and `utils.run` has a
  seam (`train_model_fn`) for training only. With this patch the registered
  extensions run around it in every mode, under `utils.run` and under
  `t5.models.MtfModel`. Can go when `tpu_estimator_model_fn` takes hooks and
  metrics itself.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.tpu_estimator_model_fn
  if getattr(upstream, "opened_by_switch_mtf", False):
    return

  @functools.wraps(upstream)
  def tpu_estimator_model_fn(*args, **kwargs):
    model_fn = upstream(*args, **kwargs)
    # Gin adds what it binds behind this function.
    call = gin.get_bindings("tpu_estimator_model_fn") | (
        inspect.signature(upstream).bind(*args, **kwargs).arguments)

    def opened(features, labels, mode, params=None, config=None):
      run = _model_run(mode, features, call)
      if not run.use_tpu and not tf.resource_variables_enabled():
        raise ValueError(
            "switch_mtf: variables must be resource variables on CPU and GPU, "
            "with resource_variables_enabled=False. Call "
            "switch_mtf.upstream.fixes.use_resource_variables() after "
            "tf.disable_v2_behavior().")
      for extension in _extensions:
        extension.before_graph(run)
      try:
        spec = model_fn(features, labels, mode, params=params, config=config)
      except Exception as error:
        for extension in _extensions:
          better = extension.explain(run, error)
          if better is not None:
            raise better from error
        raise
      if mode == tf.estimator.ModeKeys.TRAIN and not run.use_tpu:
        order_step_reads(tf.get_default_graph())
      for extension in _extensions:
        spec = extension.finish(run, spec)
      return spec

    return opened

  tpu_estimator_model_fn.opened_by_switch_mtf = True
  utils.tpu_estimator_model_fn = tpu_estimator_model_fn


def _model_run(mode: str, features: dict, call: dict) -> ModelRun:
  """Collects what `ModelRun` describes from the arguments of the model_fn."""
  lengths = call["sequence_length"]
  return ModelRun(
      mode=mode,
      use_tpu=bool(call["use_tpu"]),
      model_dir=call["model_dir"],
      tokens_per_step=call["batch_size"] * sum(
          length for name, length in lengths.items() if name in features),
      mesh_shape=call["mesh_shape"],
      layout_rules=call["layout_rules"],
      keep_checkpoint_max=call.get("keep_checkpoint_max"),
      init_checkpoint=call.get("init_checkpoint"),
      init_variable_filter=call.get("init_variable_filter"))


@contextlib.contextmanager
def _replaced(module: Any, **attributes: Any) -> Iterator[None]:
  """Gives a module other attributes for a while."""
  before = {name: getattr(module, name) for name in attributes}
  for name, value in attributes.items():
    setattr(module, name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      setattr(module, name, value)


def make_student_teacher_with(make: Callable[..., Any]) -> None:
  """Lets `make` configure the models of `model_type = "bi_student_teacher"`.

  `utils.build_model` names upstream's function, and that names the class. Can
  go when the class is gin-configurable.

  Args:
    make: as `transformer.make_bi_student_teacher`; returns a StudentTeacher.
  """
  from mesh_tensorflow.transformer import transformer
  transformer.make_bi_student_teacher = make


@contextlib.contextmanager
def arguments_of_model_fn() -> Iterator[dict[str, Any]]:
  """While it is open, `utils.run` makes no model_fn, but tells what it is of.

  Everything that gin decides is decided in `utils.run`, which hands it to
  `tpu_estimator_model_fn` and keeps it. Can go when `utils.run` can return
  what it has resolved.

  Yields:
    A dict that has the arguments of `tpu_estimator_model_fn` afterwards.
  """
  from mesh_tensorflow.transformer import utils
  signature = inspect.signature(utils.tpu_estimator_model_fn)
  found = {}

  def tpu_estimator_model_fn(*args, **kwargs):
    found.update(signature.bind(*args, **kwargs).arguments)
    return lambda features, labels, mode, params, config: None

  with _replaced(utils, tpu_estimator_model_fn=tpu_estimator_model_fn):
    yield found


@contextlib.contextmanager
def graph_that_never_runs(mesh_impl: Any) -> Iterator[list]:
  """While it is open, model_fns build a graph that holds no variable.

  Extensions have no part in it.

  `tpu_estimator_model_fn` chooses the mesh implementation itself, and making
  TensorFlow's own variables takes most of the time, on TPU once for each core.
  Can go when a mesh implementation can be handed in.

  Args:
    mesh_impl: the mtf.MeshImpl that graphs are lowered to.

  Yields:
    A list that has the mtf.Lowering of each graph afterwards.
  """
  import mesh_tensorflow as mtf
  lowerings = []

  class Lowering(mtf.Lowering):

    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      lowerings.append(self)

  def given(*unused_args, **unused_kwargs):
    return mesh_impl

  def name_only(name, *unused_args, dtype=tf.float32, **unused_kwargs):
    scope = tf.get_variable_scope().name
    return types.SimpleNamespace(
        name=f"{scope}/{name}:0" if scope else f"{name}:0", dtype=dtype,
        device="")

  with (_replaced(mtf.placement_mesh_impl, PlacementMeshImpl=given),
        _replaced(mtf.simd_mesh_impl, SimdMeshImpl=given,
                  auto_logical_to_physical_tpu=given),
        _replaced(mtf, Lowering=Lowering),
        _replaced(sys.modules[__name__], _extensions=[]),
        _replaced(tf, get_variable=name_only)):
    yield lowerings


def order_step_reads(graph: tf.Graph) -> None:
  """Makes every read of the global step happen before the step is counted.

  `tpu_estimator_model_fn` increments the global step without waiting for the
  ops that read it, so the learning rate and whatever else depends on the step
  may see this step's number or the next one's. Can go when upstream adds the
  dependency.

  Args:
    graph: a finished training graph with resource variables.
  """
  step = tf.train.get_global_step(graph)
  uses = step.handle.consumers()
  counts = [op for op in uses if op.type == "AssignAddVariableOp"]
  for read in (op for op in uses if op.type == "ReadVariableOp"):
    for count in counts:
      # The value that the increment returns is read after it, and must be.
      if count not in read.control_inputs:
        count._add_control_input(read)
