"""The same numbers, sooner: patches for speed alone.

`SWITCH_MTF_FAST=0` in the environment leaves all of them out. One function a
patch: what is slow upstream, and under which condition the patch can be
deleted.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as tf


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


def replace_attention_and_einsum(
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
