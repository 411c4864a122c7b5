"""A teacher's logits on disk: computed once, read by any number of students.

A teacher that does not fit beside its student fits alone. `gin/runs/
cache_logits.gin` runs it over the batches of a student's run and keeps what it
says of each row, a sequence or several packed into one; a distillation with
`logit_cache.directory` reads that in place of running the teacher. Rows are
found by their tokens, so that the order, the batches and the repeats of another
run do not matter.

With all logits kept it is the same distillation. With top_k the others count as
improbable: their probability is 0.

Python runs inside the graph to read it: in one process, on CPU or GPU.
"""

import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gin
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

from switch_mtf import errors
from switch_mtf.distillation.logit_store import About, LogitStore
from switch_mtf.mesh import on_tpu
from switch_mtf.training.hooks import duration

FILLED = "switch_mtf_filled_logits"  # a graph's collection
CACHED_VOCAB = "cached_vocab"  # not split, whatever the layout does with vocab
PRINT_SECONDS = 10.0


@gin.configurable
def logit_cache(
    directory: str | None = None, top_k: int | None = None, fill: bool = False
) -> "Logits | None":
  """The teacher's logits that a distillation reads, if it does.

  Args:
    directory: of the cache; None to run the teacher.
    top_k: how many logits of a token to keep when it is filled; all if None.
    fill: whether this run fills it; see gin/runs/cache_logits.gin.

  Returns:
    The cache in a graph; None without a directory.

  Raises:
    ValueError: if an option has an illegal value.
  """
  errors.require_flag("logit_cache", fill=fill)
  if top_k is not None:
    errors.require_whole("logit_cache", top_k=top_k)
  if directory is None:
    if fill:
      raise ValueError(
          "logit_cache: a run that fills the cache must have one, with "
          "directory=None. Set logit_cache.directory.")
    return None
  return Logits(LogitStore(directory), top_k, fill)


class Logits:
  """A cache as operations of a graph.

  Attributes:
    store: that is read or filled.
    fill: whether it is filled.
    top_k: how many logits of a token are kept then; all if None.
  """

  def __init__(self, store: LogitStore, top_k: int | None, fill: bool):
    """See `logit_cache`."""
    self.store = store
    self.fill = fill
    self.top_k = top_k
    self._shapes: tuple[int, int, int] | None = None

  def start(self, checkpoint: str) -> None:
    """Opens the cache for the graph that was made.

    Args:
      checkpoint: of the teacher, without ".index".

    Raises:
      ValueError: if it is of something else, or more logits are to be kept than
        there are.
    """
    inputs, targets, vocab = self._shapes
    of_run = dict(**_of_run(checkpoint), inputs=inputs, targets=targets,
                  vocab=vocab)
    if not self.fill:
      self.store.open(**of_run)
      return
    if self.top_k is not None and self.top_k > vocab:
      raise ValueError(
          "logit_cache: top_k must be at most the logits that there are, with "
          f"top_k={self.top_k}, vocabulary={vocab}. Set logit_cache.top_k.")
    self.store.start(About(**of_run, top_k=self.top_k))

  def read(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, vocab_dim: mtf.Dimension
  ) -> mtf.Tensor:
    """The teacher's logits, without the teacher.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      vocab_dim: of the student's logits.

    Returns:
      float32 [batch dims, length, vocab].
    """
    whole = self._unsplit(inputs, targets, vocab_dim)

    def look_up(inputs, targets):
      logits = tf.numpy_function(
          lambda *rows: self.store.read(*map(_rows, rows)).reshape(
              (*rows[1].shape, vocab_dim.size)),
          [inputs, targets], tf.float32, stateful=False)
      return tf.ensure_shape(logits, [*targets.shape, vocab_dim.size])

    logits = mtf.slicewise(
        look_up, [inputs, targets], output_shape=whole, output_dtype=tf.float32,
        splittable_dims=targets.shape.dims[:-1])
    return mtf.reshape(logits, targets.shape + [vocab_dim])

  def write(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, logits: mtf.Tensor
  ) -> mtf.Tensor:
    """Keeps logits whenever the result is computed.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      logits: [batch dims, length, vocab].

    Returns:
      The logits.
    """
    whole = self._unsplit(inputs, targets, logits.shape.dims[-1])
    tf.add_to_collection(FILLED, self)

    def keep(inputs, targets, logits):
      def write(inputs, targets, logits):
        self.store.write(*map(_rows, (inputs, targets)),
                         logits.reshape((-1, *logits.shape[-2:])))
        return logits
      return tf.ensure_shape(
          tf.numpy_function(write, [inputs, targets, logits], tf.float32),
          logits.shape)

    kept = mtf.slicewise(
        keep, [inputs, targets,
               mtf.reshape(mtf.cast(logits, tf.float32), whole)],
        output_shape=whole, splittable_dims=targets.shape.dims[:-1],
        output_dtype=tf.float32)
    return mtf.cast(mtf.reshape(kept, logits.shape), logits.dtype)

  def _unsplit(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, vocab_dim: mtf.Dimension
  ) -> mtf.Shape:
    """The shape of logits that one processor has whole rows of."""
    if on_tpu(inputs.mesh):
      raise ValueError(
          "logit_cache: the run must be on CPU or GPU, where Python can read "
          f"and write files, with directory={self.store.directory}, device=TPU."
          " Set logit_cache.directory = None.")
    self._shapes = (
        inputs.shape.dims[-1].size, targets.shape.dims[-1].size, vocab_dim.size)
    return targets.shape + [mtf.Dimension(CACHED_VOCAB, vocab_dim.size)]


def _of_run(checkpoint: str) -> dict[str, Any]:
  """What a cache must be of, as far as it is known without a graph."""
  with tf.io.gfile.GFile(f"{checkpoint}.index", "rb") as f:
    teacher = hashlib.sha256(f.read()).hexdigest()
  return dict(teacher=teacher, mixture=gin.query_parameter("%MIXTURE_NAME"))


def _rows(ids: np.ndarray) -> np.ndarray:
  return ids.reshape((-1, ids.shape[-1]))


@gin.configurable
def fill_logit_cache(
    estimator: Any,
    *arguments: Any,
    find_teacher: Callable[[], Any] = gin.REQUIRED,
    **kwargs: Any,
) -> None:
  """A `train_model_fn` that writes a teacher's logits in place of training.

  It reads the batches that the run would train on, and goes on where it was
  stopped.

  Args:
    estimator: of the run.
    *arguments: see `mesh_tensorflow.transformer.utils.train_model`.
    find_teacher: `distill_from`.
    **kwargs: as `arguments`.
  """
  checkpoint = find_teacher().trained()
  logits = logit_cache()
  store = logits.store
  if store.exists:  # before it is found to be full
    store.open(**_of_run(checkpoint), top_k=logits.top_k)
  reader = _Evaluation(estimator, checkpoint, store.steps,
                       kwargs.get("seen_data_init_step", 0))
  utils.train_model(reader, *arguments, **kwargs)
  print(f"logit_cache: {store.directory} is filled", file=sys.stderr)


class _Evaluation:
  """As much of an Estimator as `train_model` uses, that evaluates instead."""

  def __init__(self, estimator: Any, checkpoint: str, done: int, first: int):
    """Records its arguments.

    Args:
      estimator: of the teacher.
      checkpoint: of the teacher.
      done: steps that were gone through before.
      first: the step before the run's first.
    """
    self._estimator, self._checkpoint = estimator, checkpoint
    self._done, self._first = done, first

  def latest_checkpoint(self) -> str | None:
    """Whether batches are to be skipped."""
    return self._checkpoint if self._done else None

  def get_variable_value(self, name: str) -> int:
    """The step to go on from."""
    del name
    return self._first + self._done

  def train(self, input_fn: Callable, max_steps: int, hooks: list) -> None:
    """Goes through the batches that are left."""
    del hooks
    steps = max_steps - self._first
    if steps > self._done:
      self._estimator.evaluate(
          input_fn, steps=steps - self._done, checkpoint_path=self._checkpoint,
          hooks=[_FillHook(self._checkpoint, self._done, steps)])


class _FillHook(tf.estimator.SessionRunHook):
  """Opens the cache, notes how far it is filled, and prints that."""

  def __init__(self, checkpoint: str, done: int, steps: int):
    """See `_Evaluation`."""
    self._checkpoint, self._done, self._steps = checkpoint, done, steps
    self._step = done

  def begin(self):
    """The graph is there, and nothing has run."""
    logits, = tf.get_collection(FILLED)
    logits.start(self._checkpoint)
    self._store = logits.store
    self._start = self._printed = time.time()

  def after_run(self, run_context, run_values):
    """Counts a batch."""
    self._step += 1
    now = time.time()
    if now - self._printed < PRINT_SECONDS and self._step < self._steps:
      return
    self._store.note_steps(self._step)
    self._printed = now
    left = (now - self._start) / (self._step - self._done) * (
        self._steps - self._step)
    print(f"logits of {self._step:,}/{self._steps:,} batches | "
          f"{len(self._store):,} rows | {duration(left)} left",
          file=sys.stderr, flush=True)
