"""Openings in upstream code for training, distillation and planning.

`open_model_fn` lets extensions run around every model graph. The planner uses
`arguments_of_model_fn` and `graph_that_never_runs`, distillation uses
`make_student_teacher_with`.
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
  """The properties of a run that are known while its graph is built.

  Attributes:
    mode: "train", "eval" or "infer" (tf.estimator.ModeKeys).
    use_tpu: whether the graph is for TPU.
    model_dir: folder of the checkpoints, or None.
    tokens_per_step: number of tokens that one step reads: inputs and targets,
      including padding.
    mesh_shape: mtf.Shape of the mesh.
    layout_rules: mtf.LayoutRules of the run.
    keep_checkpoint_max: number of checkpoints that the run keeps, None for all.
    init_checkpoint: path, without ".index", of the checkpoint that a new run
      starts from, or None.
    init_variable_filter: regular expression that selects the variables of
      `init_checkpoint` to take over.
    features: the model's inputs, by name.
    vocabulary: vocabulary of the ids, or a tuple of those of inputs and of
      targets.
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
  features: dict[str, tf.Tensor] | None = None
  vocabulary: Any = None


class ModelFnExtension:
  """A base class for code around mesh_tensorflow's `model_fn`."""

  def before_graph(self, run: ModelRun) -> None:
    """Runs in the new graph, before the model is built."""

  def see_loss(
      self, model: Any, context: Any, logits: Any, targets: Any, vocab_dim: Any,
  ) -> None:
    """Runs before a model's loss is computed, with that loss's arguments."""

  def explain(self, run: ModelRun, error: Exception) -> Exception | None:
    """Returns a clearer error for one from building the model, or None."""

  def finish(self, run: ModelRun, spec: Any) -> Any:
    """Changes the EstimatorSpec or TPUEstimatorSpec of the finished graph."""
    return spec


_extensions: list[ModelFnExtension] = []


def extend_model_fn(extension: ModelFnExtension) -> None:
  """Registers an extension; see `open_model_fn`."""
  _extensions.append(extension)


def open_model_fn() -> None:
  """Opens mesh_tensorflow's `model_fn` to extensions.

  `tpu_estimator_model_fn` prints one line per step through `tf.Print`. It takes
  no hooks for evaluation or prediction and no random seed, and `utils.run` can
  be extended (`train_model_fn`) for training only. With this patch, the
  registered extensions run around the model_fn in every mode, under `utils.run`
  and under `t5.models.MtfModel`. Can be removed when `tpu_estimator_model_fn`
  takes hooks and metrics itself.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.tpu_estimator_model_fn
  if getattr(upstream, "opened_by_switch_mtf", False):
    return

  @functools.wraps(upstream)
  def tpu_estimator_model_fn(*args, **kwargs):
    model_fn = upstream(*args, **kwargs)
    # gin adds its bindings inside `upstream`; the arguments here lack them.
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
  """Builds a `ModelRun` from the arguments of `tpu_estimator_model_fn`."""
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
      init_variable_filter=call.get("init_variable_filter"),
      features=features,
      vocabulary=call.get("vocabulary"))


@contextlib.contextmanager
def _replaced(module: Any, **attributes: Any) -> Iterator[None]:
  """Replaces attributes of a module inside the context."""
  before = {name: getattr(module, name) for name in attributes}
  for name, value in attributes.items():
    setattr(module, name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      setattr(module, name, value)


def make_student_teacher_with(make: Callable[..., Any]) -> None:
  """Makes `make` build the models of `model_type = "bi_student_teacher"`.

  `utils.build_model` calls upstream's function by name, and that function names
  the class. Can be removed when the class is gin-configurable.

  Args:
    make: function with the arguments of `transformer.make_bi_student_teacher`;
      returns a StudentTeacher.
  """
  from mesh_tensorflow.transformer import transformer
  transformer.make_bi_student_teacher = make


def draw_uniform_with(draw: Callable[..., Any]) -> None:
  """Makes `draw` answer calls of `mtf.random_uniform`, dropout's among them.

  Upstream's numbers depend on how often an operation has run, so that a resumed
  run draws others. Can be removed when upstream's depend on the step.

  Args:
    draw: function of upstream's function and its arguments.
  """
  import mesh_tensorflow as mtf
  from mesh_tensorflow import ops
  upstream = getattr(ops.random_uniform, "__wrapped__", ops.random_uniform)

  @functools.wraps(upstream)
  def random_uniform(mesh, shape, **kwargs):
    return draw(upstream, mesh, shape, **kwargs)

  ops.random_uniform = mtf.random_uniform = random_uniform


@contextlib.contextmanager
def arguments_of_model_fn() -> Iterator[dict[str, Any]]:
  """Captures the arguments that `utils.run` passes to the model_fn.

  `utils.run` resolves everything that gin configures, but only passes it on to
  `tpu_estimator_model_fn` and does not return it. Inside this context,
  `utils.run` makes an empty model_fn. Can be removed when `utils.run` can
  return what it has resolved.

  Yields:
    A dict, which `utils.run` fills with the arguments of
    `tpu_estimator_model_fn`.
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
  """Makes model_fns build graphs without variables, and without extensions.

  `tpu_estimator_model_fn` chooses the mesh implementation itself. Making
  TensorFlow's own variables takes most of the time, on TPU once for each core.
  Can be removed when a mesh implementation can be passed in.

  Args:
    mesh_impl: the mtf.MeshImpl that graphs are lowered to.

  Yields:
    A list, which receives the mtf.Lowering of each graph.
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


@contextlib.contextmanager
def same_gin_afterwards() -> Iterator[None]:
  """Undoes what is bound and used inside the context.

  gin can only add bindings. Can be removed when gin can restore a state.
  """
  states = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG)
  before = [{key: dict(value) for key, value in state.items()}
            for state in states]
  try:
    yield
  finally:
    for state, values in zip(states, before, strict=True):
      state.clear()
      state.update(values)


def order_step_reads(graph: tf.Graph) -> None:
  """Makes every read of the global step happen before its increment.

  `tpu_estimator_model_fn` increments the global step without waiting for the
  ops that read it, so the learning rate, and whatever else depends on the step,
  may see the number of this step or of the next. Can be removed when upstream
  adds the dependency.

  Args:
    graph: a finished training graph with resource variables.
  """
  step = tf.train.get_global_step(graph)
  uses = step.handle.consumers()
  counts = [op for op in uses if op.type == "AssignAddVariableOp"]
  for read in (op for op in uses if op.type == "ReadVariableOp"):
    for count in counts:
      # The increment returns a read that must come after it.
      if count not in read.control_inputs:
        count._add_control_input(read)
