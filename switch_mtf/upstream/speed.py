"""Patches that compute the same numbers faster.

`SWITCH_MTF_FAST=0` in the environment leaves all of them out. Each patch is one
function. Its docstring says what is slow upstream and when the patch can be
removed.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import tensorflow.compat.v1 as tf


def keep_freed_memory() -> None:
  """Stops glibc from returning freed memory to Linux between steps.

  TensorFlow allocates each large tensor of each step with glibc, which returns
  the memory to Linux when it is freed. Linux then zeroes every page anew, which
  takes five times as long as copying it. No effect without glibc. Can be
  removed when TensorFlow's CPU allocator keeps freed memory.
  """
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):
    return
  mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
  mallopt(mmap_max, 0)  # allocate everything from the heap
  mallopt(trim_threshold, 2**31 - 1)  # never shrink the heap
  mallopt(top_pad, 2**26)  # do not grow it in small steps
  mallopt(arena_max, 1)  # use one heap for all threads


def replace_attention_and_einsum(
    einsum: Callable, attention: Callable, self_attention: Callable,
    enc_dec_attention: Callable,
) -> None:
  """Replaces upstream's einsum and attention by ours.

  `PlacementMeshImpl.einsum` is meant to be overridden, but
  `utils.tpu_estimator_model_fn` makes the mesh implementation itself. T5's
  attention layers look up `attention.attention` by name, and compute their
  cache inside `call`. Can be removed when a mesh implementation and an
  attention function can be passed in, and the cache keeps what does not change.

  Args:
    einsum: function with the arguments of `tf.einsum`.
    attention: function with the arguments of upstream's `attention.attention`.
    self_attention: function with the arguments of `SelfAttention.call`, the
      layer first.
    enc_dec_attention: function with the arguments of `EncDecAttention.call`,
      the layer first.
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
  """Reads each variable once per step, not once for each use.

  Upstream reads a resource variable anew wherever its tensor is used, in the
  body of the decoding loop once for each token. The values are the same: an
  update writes to a new buffer while the old one is in use. Can be removed when
  `mtf.Variable.lower` converts the variable to a tensor.
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
  """Makes the gradient of `mtf.relu` read the output instead of the input.

  Upstream keeps both for the backward pass, and the mask of the input as
  floats. Can be removed when the gradient of `mtf.relu` is that of
  `tf.nn.relu`.
  """
  from mesh_tensorflow import ops

  def relu_gradient(op, dy):
    y = op.outputs[0]
    return [ops.cwise(
        lambda dy, y: tf.raw_ops.ReluGrad(gradients=dy, features=y),
        [ops.broadcast(dy, y.shape), y], name="relu_gradient")]

  ops._relu_grad = relu_gradient


def gradients_of_slices(outputs: int) -> Callable[..., tuple[tf.Tensor, ...]]:
  """Returns a function that differentiates what a processor has computed.

  Args:
    outputs: number of tensors that were computed.

  Returns:
    A function of the outputs, their gradients and the inputs, in that order. It
      returns the gradients of the inputs, zeros where there are none.
  """
  def gradients(*slices: tf.Tensor) -> tuple[tf.Tensor, ...]:
    ys, dys, xs = (slices[:outputs], slices[outputs:2 * outputs],
                   slices[2 * outputs:])
    return tuple(tf.gradients(
        list(ys), list(xs), list(dys),
        unconnected_gradients=tf.UnconnectedGradients.ZERO))

  return gradients


def differentiate_in_place() -> None:
  """Computes the gradient of each slice on the processor of that slice.

  For a layer that computes slice by slice (our attention, `mtf.slicewise`),
  upstream calls `tf.gradients` outside the scope of any device. TensorFlow then
  places the whole gradient on the first processor and sends its operands there.
  Can be removed when `GenericGradOperation.lower` uses the devices of the mesh.
  """
  from mesh_tensorflow import ops

  def lower(self, lowering):
    forward = self._forward_op
    tensors = [*forward.outputs, *self._grad_ys, *forward.inputs]
    found = lowering.mesh_impl(self).slicewise(
        gradients_of_slices(len(forward.outputs)),
        *(lowering.tensors[x] for x in tensors))
    for x, gradient in zip(self.outputs, found, strict=True):
      lowering.set_tensor_lowering(x, gradient)

  ops.GenericGradOperation.lower = lower


def reuse_constants() -> None:
  """Shares one constant between equal numbers of a graph.

  Upstream makes a constant for every axis, shape and factor that an operation
  takes: a third of all operations, each as slow to make as any other. Only
  Python numbers and short lists of them are shared, within one loop or outside
  all loops, on one device, and where no control dependency or colocation is in
  force. Can be removed when building a graph is fast, or when no one waits for
  it.
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
  """Returns a key that equal constants share; None for one not to share."""
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
  """Deletes the counts of variable scopes inside a scope that is closed.

  TensorFlow sets these counts to 0 but keeps them, and goes through all counts
  ever made whenever a scope closes. This takes a twelfth of the time of
  planning a model of 48 layers. A missing count is read as 0. Can be removed
  when TensorFlow deletes the counts.
  """
  from tensorflow.python.ops import variable_scope

  def close(store, scope_name):
    counts = store.variable_scopes_count
    inside = "" if scope_name is None else f"{scope_name}/"
    for name in [name for name in counts if name.startswith(inside)]:
      del counts[name]

  variable_scope._VariableScopeStore.close_variable_subscopes = close


def name_types_only_in_errors() -> None:
  """Checks the type of an operation's input without naming all legal types.

  TensorFlow builds part of its error message before it knows whether there is
  an error, which takes an eighth of the time of making an operation. Can be
  removed when TensorFlow builds the message only for an error.
  """
  from tensorflow.python.framework import op_def_library
  upstream = op_def_library._SatisfiesTypeConstraint

  def check(dtype, attr_def, param_name):
    if dtype not in attr_def.allowed_values.list.type:
      upstream(dtype, attr_def, param_name)

  op_def_library._SatisfiesTypeConstraint = check


def transpose_only_to_reorder() -> None:
  """Adds dimensions to a tensor without a transpose that moves nothing.

  TensorFlow removes such transposes only when it optimizes a graph. They are a
  sixteenth of all operations, and this patch does not make them. Can be removed
  when `mtf.ops._expand_dims` transposes only to reorder.
  """
  from mesh_tensorflow import ops
  upstream = ops._expand_dims

  def expand_dims(x, input_shape, output_shape):
    kept = [d for d in output_shape.dims if d in input_shape.dims]
    if kept != input_shape.dims:  # a reordering, or an error
      return upstream(x, input_shape, output_shape)
    for axis, dim in enumerate(output_shape.dims if kept else []):
      if dim not in input_shape.dims:
        x = tf.expand_dims(x, axis)
    return x

  ops._expand_dims = expand_dims


def leave_packing_as_written() -> None:
  """Stops AutoGraph from translating the functions that pack and trim examples.

  The translation delays the first step by seconds, although these functions
  contain nothing to translate. Can be removed when the functions opt out of
  AutoGraph themselves.
  """
  import seqio
  from mesh_tensorflow.transformer import dataset
  for module, name in ((dataset, "pack_or_pad"), (seqio.utils, "trim_dataset")):
    setattr(module, name, tf.autograph.experimental.do_not_convert(
        getattr(module, name)))


def read_data_early() -> None:
  """Starts reading data when a session starts, not when its first step does.

  Estimator initializes the iterator last, after the checkpoint of step 0, and
  reads nothing before the first step asks for data. That step then waits a
  second for the shuffle buffers to fill. Can be removed when Estimator starts
  its iterators earlier.
  """
  from tensorflow_estimator.python.estimator import util

  class InitializerHook(tf.train.SessionRunHook):
    """A hook that initializes the iterator together with the tables."""

    def __init__(self, iterator):
      # Must run before the model is built: a Scaffold made there may read the
      # collection at once. The data may read the tables, so they come first.
      tables = tf.get_collection_ref(tf.GraphKeys.TABLE_INITIALIZERS)
      iterator.initializer._add_control_inputs(tables)
      tables.append(iterator.initializer)

  upstream = util.parse_input_fn_result

  def parse_input_fn_result(result):
    # The Dataset of version 1 is a subclass.
    if isinstance(result, tf.compat.v2.data.Dataset):
      options = tf.data.Options()
      options.experimental_warm_start = True
      result = result.with_options(options)
    return upstream(result)

  util._DatasetInitializerHook = InitializerHook
  util.parse_input_fn_result = parse_input_fn_result


def write_graph_beside() -> None:
  """Writes `graph.pbtxt` in a thread during the first step, not before it.

  Python takes most of a second to format the text. Can be removed when
  `CheckpointSaverHook` writes the file in C++ or not at all.
  """
  from tensorflow.python.training import training_util
  upstream = training_util.write_graph

  def write_graph(*args, **kwargs):
    # The thread is no daemon, so Python waits for it before it exits.
    threading.Thread(target=upstream, args=args, kwargs=kwargs).start()

  training_util.write_graph = write_graph
