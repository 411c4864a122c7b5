"""How one processor computes, on CPU and GPU: what is faster than the default.

Functions of `tf.Tensor`s, each equal to the TensorFlow function it stands for
to float rounding. `compat.compute_faster_off_tpu` puts `einsum` in its place;
the layers call the others.
"""

import collections
import math

import tensorflow.compat.v1 as tf
from numpy.core._multiarray_umath import __cpu_features__


def einsum(equation: str, *slices: tf.Tensor) -> tf.Tensor:
  """`tf.einsum` of two tensors as one (batched) matmul, as it stands in memory.

  `tf.einsum` itself transposes where a matmul could read a matrix as its
  transpose.

  Args:
    equation: such as "exm,emf->exf".
    *slices: tensors, as many as the equation has.

  Returns:
    What `tf.einsum` returns.
  """
  plan = _plan(equation, slices)
  if plan is None:
    return tf.einsum(equation, *slices)
  a, b = (slices[1], slices[0]) if plan.swapped else slices
  sizes = _sizes(equation, slices)

  def size(letters: str) -> list[int]:
    return [sizes[letter] for letter in letters]

  def matrices(x: tf.Tensor, has: str, wanted: tuple[str, str, str]):
    if has != "".join(wanted):
      x = tf.transpose(x, [has.index(letter) for letter in "".join(wanted)])
    batch = [math.prod(size(wanted[0]))] if wanted[0] else []
    return tf.reshape(x, [*batch, *(math.prod(size(w)) for w in wanted[1:])])

  y = matmul(matrices(a, plan.a_has, plan.a_wanted),
             matrices(b, plan.b_has, plan.b_wanted),
             plan.a_transposed, plan.b_transposed)
  y = tf.reshape(y, size(plan.y_has))
  if plan.y_has != plan.y_wanted:
    y = tf.transpose(y, [plan.y_has.index(letter) for letter in plan.y_wanted])
  return y


# With it oneDNN computes weight gradients with all threads, which makes a step
# 5 to 8 % faster; else with one.
AVX512 = __cpu_features__.get("AVX512F", False)
# Summed entries from which TensorFlow's own kernel is faster without AVX-512.
# With less, experts of few tokens, it is slower.
LONG = 128
# Rows, such as tokens that are decoded, for which oneDNN multiplies by a large
# matrix up to a third faster in parts of so many entries, which stay in cache.
FEW_ROWS, CACHED = 16, 2**19


def matmul(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> tf.Tensor:
  """`tf.matmul`, by whichever of TensorFlow's two kernels is faster.

  Args:
    a: [..., n, k], or [..., k, n] if it is `a_transposed`.
    b: [..., k, m], or [..., m, k] if it is `b_transposed`.
    a_transposed: whether to read `a` as its transpose.
    b_transposed: the same of `b`.

  Returns:
    [..., n, m].
  """
  if a_transposed and a.shape[-2] >= LONG and not AVX512:
    return _matmul_of_eigen(a, b, a_transposed, b_transposed)
  if AVX512 and b.shape.rank == 2 and _faster_as_batch(
      a, b, a_transposed, b_transposed):
    return tf.matmul(a[None], b[None], transpose_a=a_transposed,
                     transpose_b=b_transposed)[0]
  if b_transposed and not a_transposed and b.shape.rank == 2 and (
      1 < a.shape[0] <= FEW_ROWS and b.shape.num_elements() > CACHED):
    return _matmul_in_parts(a, b)
  return tf.matmul(a, b, transpose_a=a_transposed, transpose_b=b_transposed)


def _faster_as_batch(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> bool:
  """Whether oneDNN's kernel for batches is faster with a batch of one.

  4,096 rows, on two cores: the gradient of a weight of 1,024 x 256 16.3 -> 12.0
  ms; times the transpose of one of 256 x 1,024 11.3 -> 9.6 ms. With as many
  columns as rows, or more, it is as fast or slower.
  """
  if a_transposed:
    return not b_transposed and 2 * a.shape[1] >= 3 * b.shape[1]
  columns, summed = b.shape.as_list()
  return b_transposed and a.shape[0] > FEW_ROWS and summed >= 2 * columns and (
      summed * columns <= CACHED)


def _matmul_in_parts(a_NK: tf.Tensor, b_MK: tf.Tensor) -> tf.Tensor:
  """`matmul` of few rows with the transpose of `b_MK`, `CACHED` at a time."""
  rows, summed = b_MK.shape.as_list()
  part = max(1, CACHED // summed)
  parts = tf.split(b_MK, [
      min(part, rows - start) for start in range(0, rows, part)])
  return tf.concat(
      [tf.matmul(a_NK, b, transpose_b=True) for b in parts], axis=-1)


def _matmul_of_eigen(
    a: tf.Tensor, b: tf.Tensor, a_transposed: bool, b_transposed: bool
) -> tf.Tensor:
  """`matmul` by the kernel that TensorFlow has without oneDNN."""
  if a.dtype != tf.float32:
    return tf.matmul(a, b, transpose_a=a_transposed, transpose_b=b_transposed)
  # V3, unlike V2, is never left to oneDNN.
  return tf.raw_ops.BatchMatMulV3(
      x=a, y=b, adj_x=a_transposed, adj_y=b_transposed, Tout=a.dtype)


_Plan = collections.namedtuple(
    "_Plan", "swapped a_has a_wanted a_transposed b_has b_wanted b_transposed "
    "y_has y_wanted")


def _plan(equation: str, slices: tuple[tf.Tensor, ...]) -> _Plan | None:
  """How to make a matmul of an einsum; None if it is none."""
  if len(slices) != 2 or any(
      x.shape.rank is None or None in x.shape.as_list() for x in slices):
    return None
  inputs, y = equation.replace(" ", "").split("->")
  a, b = inputs.split(",")
  shared = [letter for letter in a if letter in b]
  batch = "".join(letter for letter in y if letter in shared)
  summed = "".join(letter for letter in shared if letter not in y)
  a_free = "".join(letter for letter in a if letter not in b)
  b_free = "".join(letter for letter in b if letter not in a)
  if not (summed and a_free and b_free) or set(a_free + b_free) - set(y) or (
      len(set(a)) < len(a) or len(set(b)) < len(b)):
    return None
  swapped = y.replace(b_free, "").endswith(a_free) and (
      y.index(b_free[0]) < y.index(a_free[0]))
  if swapped:
    a, b, a_free, b_free = b, a, b_free, a_free
    # In the order in which the matrix to be read as it stands has them.
    summed = "".join(letter for letter in a if letter in summed)
  a_transposed = a == batch + summed + a_free
  b_transposed = b != batch + summed + b_free
  return _Plan(
      swapped,
      a, (batch, summed, a_free) if a_transposed else (batch, a_free, summed),
      a_transposed,
      b, (batch, b_free, summed) if b_transposed else (batch, summed, b_free),
      b_transposed, batch + a_free + b_free, y)


def _sizes(equation: str, slices: tuple[tf.Tensor, ...]) -> dict[str, int]:
  """Size of each letter of an equation."""
  names = equation.replace(" ", "").split("->")[0].split(",")
  return {letter: size for name, x in zip(names, slices, strict=True)
          for letter, size in zip(name, x.shape.as_list(), strict=True)}


def attend(
    q_BLK: tf.Tensor, k_BMK: tf.Tensor, v_BMV: tf.Tensor,
    bias: tf.Tensor | None = None, mask: tf.Tensor | None = None,
) -> tf.Tensor:
  """softmax(q k^T + bias) v, with a gradient that passes less over memory.

  Args:
    q_BLK: [..., length, d_kv] - queries; the leading axes are the same of all.
    k_BMK: [..., memory_length, d_kv] - keys.
    v_BMV: [..., memory_length, d_kv] - values.
    bias: added to the logits, to be broadcast to [..., length, memory_length].
    mask: times the weights, to be broadcast in the same way: dropout.

  Returns:
    [..., length, d_kv].
  """
  extra = [x for x in (bias, mask) if x is not None]

  @tf.custom_gradient
  def attention(q, k, v, *extra):
    bias_LM = extra[0] if bias is not None else None
    mask_LM = extra[-1] if mask is not None else None
    logits = tf.matmul(q, k, transpose_b=True)
    if bias_LM is not None:
      logits += bias_LM
    probs = tf.nn.softmax(logits)
    weights = tf.cast(
        probs if mask_LM is None else probs * mask_LM, v.dtype)
    y = tf.matmul(weights, v)

    def grad(dy):
      dweights = tf.cast(tf.matmul(dy, v, transpose_b=True), probs.dtype)
      if mask_LM is not None:
        dweights *= mask_LM
      # The sum over the memory of weights * dweights, without a pass over it.
      total = tf.cast(
          tf.reduce_sum(dy * y, axis=-1, keepdims=True), probs.dtype)
      dlogits = (dweights - total) * probs
      dextra = []
      if bias is not None:
        dextra.append(_sum_to(dlogits, bias_LM.shape))
      if mask is not None:
        dextra.append(tf.zeros_like(mask_LM))
      return (tf.matmul(dlogits, k),
              tf.matmul(dlogits, q, transpose_a=True),
              tf.matmul(weights, dy, transpose_a=True), *dextra)

    return y, grad

  return attention(q_BLK, k_BMK, v_BMV, *extra)


def attend_one_query(
    q_BK: tf.Tensor, k_BMK: tf.Tensor, v_BMV: tf.Tensor,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
  """`attend` for one query each, without a gradient: for decoding.

  Args:
    q_BK: [..., d_kv] - queries; the leading axes are the same of all.
    k_BMK: [..., memory_length, d_kv] - keys.
    v_BMV: [..., memory_length, d_kv] - values.
    bias: added to the logits, to be broadcast to [..., memory_length].

  Returns:
    [..., d_kv].
  """
  # For matrices this thin oneDNN's takes up to twice as long.
  logits = _matmul_of_eigen(q_BK[..., None, :], k_BMK, False, True)
  if bias is not None:
    logits += bias[..., None, :]
  # The softmax, for which oneDNN takes longer where there is this little.
  weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
  weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
  weights = tf.cast(weights, v_BMV.dtype)
  return _matmul_of_eigen(weights, v_BMV, False, False)[..., 0, :]


def remember(
    memory_NLR: tf.Tensor, new_NR: tf.Tensor, position_N: tf.Tensor
) -> tf.Tensor:
  """Writes one entry into each memory, in place where nobody else reads it.

  TensorFlow's scatter that updates always copies all of the memory; the one
  that adds does not.

  Args:
    memory_NLR: [memories, memory_length, entry], of which the entries to be
      written are zero.
    new_NR: [memories, entry].
    position_N: int32 [memories], not negative; past the end nothing is written.

  Returns:
    The new memories, of the same shape.
  """
  count, length, _ = memory_NLR.shape.as_list()
  at = tf.stack(
      [tf.range(count), tf.minimum(position_N, length - 1)], axis=-1)
  inside = tf.cast(position_N < length, new_NR.dtype)[:, None]
  return tf.raw_ops.ScatterNdNonAliasingAdd(
      input=memory_NLR, indices=at, updates=new_NR * inside)


def _sum_to(x: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
  """The gradient of broadcasting from `shape`, which has the rank of x."""
  axes = [axis for axis, size in enumerate(shape.as_list())
          if size == 1 and x.shape[axis] != 1]
  return tf.reduce_sum(x, axis=axes, keepdims=True) if axes else x


def rms_norm(
    x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float) -> tf.Tensor:
  """Divides by the root of the mean square, times a scale.

  Args:
    x_TM: [..., d_model].
    scale_M: [d_model].
    epsilon: added to the mean.

  Returns:
    [..., d_model].
  """
  return x_TM * _inverse_rms(x_TM, epsilon) * scale_M


def rms_norm_gradients(
    dy_TM: tf.Tensor, x_TM: tf.Tensor, scale_M: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """The gradients of `rms_norm` from its inputs, which are at hand anyhow.

  Args:
    dy_TM: [..., d_model].
    x_TM: [..., d_model].
    scale_M: [d_model].
    epsilon: as in `rms_norm`.

  Returns:
    Those by x [..., d_model] and by the scale [d_model].
  """
  size = scale_M.shape.as_list()[0]
  dy, x = (tf.reshape(y, [-1, size]) for y in (dy_TM, x_TM))
  inverse = _inverse_rms(x, epsilon)
  products = dy * x
  # Both sums as matrices times a vector: read once, nothing written.
  dscale = tf.matmul(inverse, products, transpose_a=True)
  along = tf.matmul(products, scale_M[:, None])
  dx = (dy * scale_M - x * (along * tf.square(inverse) / size)) * inverse
  return tf.reshape(dx, tf.shape(x_TM)), tf.reshape(dscale, [size])


def _inverse_rms(x: tf.Tensor, epsilon: float) -> tf.Tensor:
  return tf.math.rsqrt(
      tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + epsilon)


def rows(table_VM: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
  """Rows of a table; zeros for an id that is none.

  Args:
    table_VM: [vocab, d_model].
    ids: int32, of any shape.

  Returns:
    [..., d_model].
  """
  size = table_VM.shape.as_list()[0]
  valid = tf.logical_and(ids >= 0, ids < size)
  y = tf.gather(table_VM, tf.where(valid, ids, tf.zeros_like(ids)))
  return y * tf.cast(valid, y.dtype)[..., None]


def sum_rows(y: tf.Tensor, ids: tf.Tensor, size: int) -> tf.Tensor:
  """The gradient of `rows` by the table.

  Args:
    y: [..., d_model].
    ids: int32, of the same shape without d_model.
    size: of the vocabulary.

  Returns:
    [vocab, d_model] - the sum over all places with that id.
  """
  return tf.math.unsorted_segment_sum(
      y, tf.where(ids < size, ids, tf.fill(tf.shape(ids), -1)), size)


def cross_entropy(
    logits: tf.Tensor, ids: tf.Tensor, z_loss: float) -> tf.Tensor:
  """-log softmax at an id, plus z_loss times the square of the log normaliser.

  Args:
    logits: float32 [..., vocab].
    ids: int32 [...]; one outside of the vocabulary is an error of TensorFlow's.
    z_loss: coefficient.

  Returns:
    float32 [...].
  """
  vocab = logits.shape.as_list()[-1]

  @tf.custom_gradient
  def loss_of(flat_logits: tf.Tensor):
    flat_ids = tf.reshape(ids, [-1])
    at = tf.stack([tf.range(tf.size(flat_ids)), flat_ids], axis=-1)
    # TensorFlow's own kernel does not vectorise: 40 ms in place of 13 for 768
    # rows of 4,096 on one core.
    largest = tf.reduce_max(flat_logits, axis=-1, keepdims=True)
    exps = tf.exp(flat_logits - largest)
    total = tf.reduce_sum(exps, axis=-1)
    log_total, largest = tf.log(total), tf.squeeze(largest, -1)
    loss = log_total - (tf.gather_nd(flat_logits, at) - largest)
    log_z = log_total + largest

    def grad(dloss: tf.Tensor) -> tf.Tensor:
      # dlog_z / dlogits is the softmax.
      dlog_z = dloss * (1.0 + 2.0 * z_loss * log_z)
      return tf.tensor_scatter_nd_add(
          exps * (dlog_z / total)[:, None], at, -dloss)

    return loss + z_loss * tf.square(log_z), grad

  return tf.reshape(
      loss_of(tf.reshape(logits, [-1, vocab])), ids.shape.as_list())


def chosen_matmul(
    x_RI: tf.Tensor, expert_R: tf.Tensor, kernel_EIO: tf.Tensor
) -> tf.Tensor:
  """Multiplies each of a few rows by the matrix of its expert.

  Reads those matrices only, and copies none: a slice along the first axis is a
  view.

  Args:
    x_RI: [rows, inputs].
    expert_R: int32 [rows].
    kernel_EIO: [experts, inputs, outputs].

  Returns:
    [rows, outputs].
  """
  _, inputs, outputs = kernel_EIO.shape.as_list()
  # Without AVX-512 oneDNN's takes up to half as long again.
  multiply = matmul if AVX512 else _matmul_of_eigen
  return tf.concat([
      multiply(x_RI[row:row + 1], tf.reshape(
          tf.slice(kernel_EIO, [expert_R[row], 0, 0], [1, inputs, outputs]),
          [inputs, outputs]), False, False)
      for row in range(expert_R.shape.as_list()[0])], axis=0)
