"""Every change we make to an upstream package, one function each.

In one file, however long, so that all of them can be found, and deleted. Import
this module before `mesh_tensorflow`, `t5` or `seqio`: some patches must
stand before those packages are first imported. Importing it applies them all;
importing it again does nothing. Each function says what is wrong upstream and
under which condition it can be deleted.
"""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import importlib.util
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import gin
import numpy as np

from switch_mtf.upstream import late_imports

# "0" leaves what computes as upstream has it: to compare, or to see whether
# something of ours is at fault.
FAST = os.environ.get("SWITCH_MTF_FAST", "1") != "0"


def use_onednn() -> None:
  """Turns on TensorFlow's oneDNN kernels, unless the environment says no.

  TensorFlow 2.15 does so by itself on some processors only, whatever it logs;
  on others attention's matmuls take three times as long. Read while TensorFlow
  is imported, hence called here. Can go when TensorFlow turns them on on every
  x86 processor.
  """
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def put_off_imports() -> None:
  """Puts off imports that only metrics and search spaces need.

  t5, seqio and Keras import them at their own import; together they take a
  sixth of the time until the first step. Hence called here, before
  TensorFlow's import. Can go when those packages import them where they are
  used.
  """
  for name in ("scipy.stats", "sklearn", "rouge_score.rouge_scorer", "pandas",
               "pyglove", "tensorflow_hub"):
    late_imports.import_when_used(name)
  metrics = late_imports.import_when_used("sklearn.metrics")
  # t5 asks whether there are these, to call them some day.
  for name in ("fbeta_score", "matthews_corrcoef") if metrics else ():
    setattr(metrics, name, lambda *args, name=name, **kwargs: getattr(
        metrics.imported(), name)(*args, **kwargs))


_COLLECTS_GARBAGE = gc.isenabled()
if FAST:
  # Until the end of this file: nothing that is imported is garbage, and looking
  # for it takes a third of the time.
  gc.disable()
  use_onednn()
  put_off_imports()

import tensorflow.compat.v1 as tf  # noqa: E402

MAX_PYTHON = (3, 12)
TENSORFLOW = "2.15"


def check_versions(
    python: tuple[int, int] = sys.version_info[:2],
    tensorflow: str = tf.__version__,
) -> None:
  """Refuses interpreters and TensorFlow versions that cannot work.

  TensorFlow 2.16 removed `tf.estimator`, which T5's trainer is built on, and no
  TensorFlow with `tf.estimator` exists for Python 3.12. Can go when T5 no
  longer needs the Estimator.

  Args:
    python: major and minor version.
    tensorflow: version string.

  Raises:
    ImportError: if either cannot work.
  """
  if not (3, 10) <= python < MAX_PYTHON:
    raise ImportError(
        "switch_mtf: Python must be 3.10 or 3.11, with "
        f"python={python[0]}.{python[1]}. Make the virtual environment with "
        "Python 3.11: python3.11 -m venv.")
  if not tensorflow.startswith(TENSORFLOW + "."):
    raise ImportError(
        f"switch_mtf: TensorFlow must be {TENSORFLOW}.x, the last release with "
        f"tf.estimator, with tensorflow={tensorflow}. Run: pip install -r "
        "requirements.txt")


def restore_tensor_conversion_registry() -> None:
  """Puts back `ops.register_tensor_conversion_function`.

  mesh_tensorflow 0.1.21 (`tpu_variables.py`) calls it at import; TensorFlow
  2.15 moved it to another module. Can go when mesh_tensorflow imports it from
  `tensorflow.python.framework.tensor_conversion_registry`.
  """
  from tensorflow.python.framework import ops, tensor_conversion_registry
  if not hasattr(ops, "register_tensor_conversion_function"):
    ops.register_tensor_conversion_function = (
        tensor_conversion_registry.register_tensor_conversion_function)


def leave_torch_out() -> None:
  """Lets `t5.models` be imported without torch.

  `t5/models/__init__.py` imports `hf_model` for one class that Mesh-TF never
  uses, and with it torch, which may be missing, and else takes as long to
  import as all the rest. Can go when t5 imports it lazily.
  """
  name = "t5.models.hf_model"

  class HfPyTorchModel:
    """Makes a `t5.models.HfPyTorchModel`, for which it imports torch."""

    def __new__(cls, *args, **kwargs):
      if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "t5.models.HfPyTorchModel: torch must be installed, and it is not. "
            "Run: pip install torch, or use t5.models.MtfModel.")
      if sys.modules.get(name) is module:
        del sys.modules[name]
      return importlib.import_module(name).HfPyTorchModel(*args, **kwargs)

  module = types.ModuleType(name)
  module.HfPyTorchModel = HfPyTorchModel
  sys.modules.setdefault(name, module)


def use_resource_variables() -> None:
  """Makes training on CPU and GPU free of a race, hence deterministic.

  T5 calls `disable_v2_behavior`, which selects reference variables: an update
  may overwrite a weight that the backward pass of the same step has yet to
  read. On TPU (`SimdMeshImpl`) reference variables are expected, and the
  device mesh orders the accesses: see `use_reference_variables_on_tpu`. Can go
  when mesh_tensorflow orders reads before updates on `PlacementMeshImpl`.
  """
  tf.enable_resource_variables()


def use_reference_variables_on_tpu() -> None:
  """Undoes `use_resource_variables`; `run_t5.py` calls it when given `--tpu`.

  `SimdMeshImpl` casts the master variables it is given to reference tensors.
  Can go together with `use_resource_variables`.
  """
  tf.disable_resource_variables()


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
            "switch_mtf.upstream.use_resource_variables() after "
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


def score_texts_off_tpu() -> None:
  """Lets `save_scores` take the texts that CPU and GPU give it.

  Off TPU `tpu_estimator_model_fn` turns ids into text inside the graph, and
  `save_scores` then calls `.tolist()` on that text. Here a text becomes ids
  again, with the end of sequence that scoring has added. Can go when
  `_maybe_add_pretokenized_features` accepts bytes.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils._maybe_add_pretokenized_features
  vocabulary_of = {
      "inputs": utils.inputs_vocabulary, "targets": utils.targets_vocabulary}

  @functools.wraps(upstream)
  def add_pretokenized_features(examples, vocabulary):
    for example in examples:
      for name, choose in vocabulary_of.items():
        if isinstance(example.get(name), bytes):
          text = example[name].decode("utf-8")
          ids = choose(vocabulary)
          example[name] = np.array([*ids.encode(text), ids.eos_id], np.int32)
          example[f"{name}_pretokenized"] = text
    return upstream(examples, vocabulary)

  utils._maybe_add_pretokenized_features = add_pretokenized_features


def decode_to_text() -> None:
  """Makes what decoding writes and prints text where there is no TPU, too.

  There the graph itself turns ids into strings, which are bytes in Python, and
  files get "b'...'" lines. Can go when `utils.decode` looks for bytes.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.decode

  @functools.wraps(upstream)
  def decode(*args, **kwargs):
    for text in upstream(*args, **kwargs):
      yield text.decode("utf-8") if isinstance(text, bytes) else text

  utils.decode = decode


def keep_freed_memory() -> None:
  """Lets TensorFlow have again, at once, the memory that it gave back.

  It takes each large tensor of each step from the C library, which gives it
  back to Linux in between, so that every page of it is zeroed anew: five times
  as long as copying it takes. Only for glibc. Can go when TensorFlow's
  allocator for CPU keeps memory.
  """
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):
    return
  mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
  mallopt(mmap_max, 0)  # all of it from the heap,
  mallopt(trim_threshold, 2**31 - 1)  # which is not made smaller
  mallopt(top_pad, 2**26)  # and not in small steps larger,
  mallopt(arena_max, 1)  # and there is one.


def compute_faster_off_tpu(
    einsum: Callable, attention: Callable, self_attention: Callable,
    enc_dec_attention: Callable,
) -> None:
  """Puts our einsum and our attention in the place of upstream's.

  `PlacementMeshImpl.einsum` is made to be overridden, but
  `utils.tpu_estimator_model_fn` makes the mesh itself; T5's attention layers
  look `attention.attention` up by name, and compute their cache in the midst of
  their `call`. Can go when a mesh implementation and an attention
  function can be handed in, and a cache keeps what does not change.

  Args:
    einsum: takes what `tf.einsum` takes.
    attention: takes what upstream's `attention.attention` takes.
    self_attention: takes what `SelfAttention.call` takes, the layer first.
    enc_dec_attention: the same of `EncDecAttention.call`.
  """
  if not FAST:
    return
  from mesh_tensorflow import placement_mesh_impl
  from mesh_tensorflow.transformer import attention as upstream
  from mesh_tensorflow.transformer import transformer_layers
  upstream.attention = attention
  transformer_layers.SelfAttention.call = self_attention
  transformer_layers.EncDecAttention.call = enc_dec_attention
  placement_mesh_impl.PlacementMeshImpl.einsum = (
      lambda self, equation, *slices: einsum(equation, *slices))


def read_variables_once() -> None:
  """Reads each variable once a step, not once for each use.

  A resource variable is read anew wherever its tensor is wanted, in the body of
  the decoding loop once for each token. What is read is the same: updates make
  a new buffer while the old one is in use. Can go when `mtf.Variable.lower`
  makes a tensor of the variable.
  """
  import mesh_tensorflow as mtf
  upstream = mtf.Variable.lower

  def lower(self, lowering):
    upstream(self, lowering)
    if tf.resource_variables_enabled():
      lowering.tensors[self.outputs[0]] = lowering.mesh_impl(self).slicewise(
          tf.convert_to_tensor, lowering.tensors[self.outputs[0]])

  mtf.Variable.lower = lower


def remember_only_what_relu_gave() -> None:
  """Lets the gradient of `mtf.relu` read the output in place of the input.

  Upstream keeps both for the backward pass, and the mask of the input as
  floats. Can go when `mtf.relu` does as `tf.nn.relu`.
  """
  from mesh_tensorflow import ops

  def relu_gradient(op, dy):
    y = op.outputs[0]
    return [ops.cwise(
        lambda dy, y: tf.raw_ops.ReluGrad(gradients=dy, features=y),
        [ops.broadcast(dy, y.shape), y], name="relu_gradient")]

  ops._relu_grad = relu_gradient


def differentiate_in_place() -> None:
  """Computes gradients on the processor whose slices they are of.

  Upstream asks for the gradient of what a layer computes slice by slice (our
  attention, `mtf.slicewise`) outside of all devices, so that TensorFlow gives
  all of it to the first processor, and sends it what it is computed from. Can
  go when `GenericGradOperation.lower` keeps to the devices of the mesh.
  """
  from mesh_tensorflow import ops

  def lower(self, lowering):
    forward = self._forward_op
    tensors = [*forward.outputs, *self._grad_ys, *forward.inputs]
    outputs = len(forward.outputs)

    def gradients(*slices: tf.Tensor) -> tuple[tf.Tensor, ...]:
      ys, dys, xs = (slices[:outputs], slices[outputs:2 * outputs],
                     slices[2 * outputs:])
      return tuple(tf.gradients(
          list(ys), list(xs), list(dys),
          unconnected_gradients=tf.UnconnectedGradients.ZERO))

    found = lowering.mesh_impl(self).slicewise(
        gradients, *(lowering.tensors[x] for x in tensors))
    for x, gradient in zip(self.outputs, found, strict=True):
      lowering.set_tensor_lowering(x, gradient)

  ops.GenericGradOperation.lower = lower


def reuse_constants() -> None:
  """Makes equal numbers in one graph one constant.

  Every axis, shape and factor that an operation is given is a constant of its
  own, a third of all operations, and TensorFlow takes as long to make one as
  any other. Shared are Python numbers and short lists of them, inside one loop
  or outside of all, that stand on their own: no dependency, no place beside
  another. Can go when building a graph is fast, or is not waited for.
  """
  from tensorflow.python.framework import ops
  upstream = ops._create_graph_constant

  def create(value, dtype, shape, name, verify_shape, allow_broadcast):
    graph = ops.get_default_graph()
    key = _constant_key(graph, value)
    if key is None or shape is not None:
      return upstream(value, dtype, shape, name, verify_shape, allow_broadcast)
    if not hasattr(graph, "switch_mtf_constants"):
      graph.switch_mtf_constants = {}
    made = graph.switch_mtf_constants
    key = (dtype and tf.as_dtype(dtype), *key)
    if key not in made:
      made[key] = upstream(
          value, dtype, shape, name, verify_shape, allow_broadcast)
    return made[key]

  ops._create_graph_constant = create


def _constant_key(graph: tf.Graph, value: Any) -> tuple | None:
  """What equal constants of a graph have in common; None: not to be shared."""
  numbers = value if isinstance(value, list | tuple) else (value,)
  if type(graph) is not tf.Graph or len(numbers) > 8 or not all(
      type(number) in (int, float) for number in numbers):
    return None
  if graph._control_dependencies_stack or any(
      graph._colocation_stack.peek_objs()):
    return None
  return (numbers is value, *map(repr, numbers), "in",
          graph._get_control_flow_context(), "on",
          *(d.display_name for d in graph._device_function_stack.peek_objs()))


def forget_closed_scopes() -> None:
  """Lets go of variable scopes inside one that is closed.

  TensorFlow sets their counts to 0 and keeps them, and looks at all that there
  ever were whenever one closes: a twelfth of the time that it takes to plan a
  model of 48 layers. A count that is missing is 0. Can go when it forgets them.
  """
  from tensorflow.python.ops import variable_scope

  def close(store, scope_name):
    counts = store.variable_scopes_count
    inside = "" if scope_name is None else f"{scope_name}/"
    for name in [name for name in counts if name.startswith(inside)]:
      del counts[name]

  variable_scope._VariableScopeStore.close_variable_subscopes = close


def name_types_only_in_errors() -> None:
  """Checks the type of an operation's input without listing all that may be.

  TensorFlow makes the text of its error before it knows whether there is one:
  an eighth of the time that it takes to make an operation. Can go when it does
  not.
  """
  from tensorflow.python.framework import op_def_library
  upstream = op_def_library._SatisfiesTypeConstraint

  def check(dtype, attr_def, param_name):
    if dtype not in attr_def.allowed_values.list.type:
      upstream(dtype, attr_def, param_name)

  op_def_library._SatisfiesTypeConstraint = check


def transpose_only_to_reorder() -> None:
  """Adds dimensions to a tensor without a transpose that moves nothing.

  TensorFlow removes those when it optimizes a graph: here they are not made, a
  sixteenth of all operations. Can go when `mtf.ops._expand_dims` looks first.
  """
  from mesh_tensorflow import ops
  upstream = ops._expand_dims

  def expand_dims(x, input_shape, output_shape):
    kept = [d for d in output_shape.dims if d in input_shape.dims]
    if kept != input_shape.dims:  # to be reordered, or wrong
      return upstream(x, input_shape, output_shape)
    for axis, dim in enumerate(output_shape.dims if kept else []):
      if dim not in input_shape.dims:
        x = tf.expand_dims(x, axis)
    return x

  ops._expand_dims = expand_dims


def leave_packing_as_written() -> None:
  """Keeps AutoGraph from the functions that pack and trim examples.

  It translates them for seconds before the first step, and they hold nothing
  for it. Can go when they say so themselves.
  """
  import seqio
  from mesh_tensorflow.transformer import dataset
  for module, name in ((dataset, "pack_or_pad"), (seqio.utils, "trim_dataset")):
    setattr(module, name, tf.autograph.experimental.do_not_convert(
        getattr(module, name)))


def read_data_early() -> None:
  """Begins to read data when a session does, not when its first step does.

  Estimator makes the iterator last, after the checkpoint of step 0, and
  nothing is read before the first step asks: a second of waiting for shuffling
  buffers to fill. Can go when Estimator starts its iterators earlier.
  """
  from tensorflow_estimator.python.estimator import util

  class InitializerHook(tf.train.SessionRunHook):
    """Makes the iterator where tables are made, and after them."""

    def __init__(self, iterator):
      # Before there is a model: its Scaffold may take what is there by then.
      tables = tf.get_collection_ref(tf.GraphKeys.TABLE_INITIALIZERS)
      iterator.initializer._add_control_inputs(tables)
      tables.append(iterator.initializer)

  upstream = util.parse_input_fn_result

  def parse_input_fn_result(result):
    # That of version 1 is a subclass.
    if isinstance(result, tf.compat.v2.data.Dataset):
      options = tf.data.Options()
      options.experimental_warm_start = True
      result = result.with_options(options)
    return upstream(result)

  util._DatasetInitializerHook = InitializerHook
  util.parse_input_fn_result = parse_input_fn_result


def write_graph_beside() -> None:
  """Writes `graph.pbtxt` beside the first step, not before it.

  Its text takes most of a second, in Python. Can go when
  `CheckpointSaverHook` writes it in C++ or not at all.
  """
  from tensorflow.python.training import training_util
  upstream = training_util.write_graph

  def write_graph(*args, **kwargs):
    # Python waits for it before it exits.
    threading.Thread(target=upstream, args=args, kwargs=kwargs).start()

  training_util.write_graph = write_graph


def apply() -> None:
  """Applies every patch, in the order they depend on each other."""
  check_versions()
  if FAST:
    keep_freed_memory()
  restore_tensor_conversion_registry()
  leave_torch_out()
  use_resource_variables()
  if FAST:
    read_variables_once()
    remember_only_what_relu_gave()
    differentiate_in_place()
    reuse_constants()
    forget_closed_scopes()
    name_types_only_in_errors()
    transpose_only_to_reorder()
    leave_packing_as_written()
    read_data_early()
    write_graph_beside()
  open_model_fn()
  score_texts_off_tpu()
  decode_to_text()


try:
  apply()
finally:
  if _COLLECTS_GARBAGE:
    gc.enable()
