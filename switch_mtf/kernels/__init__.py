"""How one processor computes, on CPU and GPU: what is faster than the default.

Functions of `tf.Tensor`s, each equal to the TensorFlow function it stands for
to float rounding; the layers call them. What multiplies matrices is in
`matmuls.py`.
"""

import tensorflow.compat.v1 as tf

from switch_mtf.kernels import matmuls


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
  logits = matmuls.matmul_of_eigen(q_BK[..., None, :], k_BMK, False, True)
  if bias is not None:
    logits += bias[..., None, :]
  # The softmax, for which oneDNN takes longer where there is this little.
  weights = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
  weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
  weights = tf.cast(weights, v_BMV.dtype)
  return matmuls.matmul_of_eigen(weights, v_BMV, False, False)[..., 0, :]


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
