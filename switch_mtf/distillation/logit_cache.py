"""A teacher's logits on disk: computed once, read by any number of students.

A teacher that does not fit in memory beside its student may fit alone.
`gin/runs/cache_logits.gin` runs the teacher over the batches of a student's run
and keeps the logits of each row: a sequence, or several packed into one. A
distillation with `logit_cache.directory` reads these logits instead of running
the teacher. Rows are found by their tokens, so the order, batching and repeats
of the reading run do not matter.

If all logits are kept, the distillation is the same as with the teacher. With
top_k, the other logits get the probability 0.

Python code inside the graph reads and writes the cache, so a run must be one
process, on CPU or GPU.
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

FILLED = "switch_mtf_filled_logits"  # collection of the graph
CACHED_VOCAB = "cached_vocab"  # never split, even if the layout splits vocab
PRINT_SECONDS = 10.0


@gin.configurable
def logit_cache(
    directory: str | None = None, top_k: int | None = None, fill: bool = False
) -> "Logits | None":
  """Returns the cache that a distillation reads or fills, if it has one.

  Args:
    directory: folder of the cache; None to run the teacher.
    top_k: number of logits per token to keep when filling the cache; None keeps
      all.
    fill: whether this run fills the cache; see gin/runs/cache_logits.gin.

  Returns:
    The cache, for use in a graph; None without a directory.

  Raises:
    ValueError: if an option has an illegal value.
  """
  errors.require_flag("logit_cache", fill=fill)
  if top_k is not None:
    errors.require_whole("logit_cache", top_k=top_k)
  if directory is None:
    if fill:
      raise ValueError(
          "logit_cache: a run that fills the cache must name its folder, with "
          "directory=None. Set logit_cache.directory.")
    return None
  return Logits(LogitStore(directory), top_k, fill)


class Logits:
  """A cache of logits as operations of a graph.

  Attributes:
    store: the rows on disk.
    fill: whether the run fills the store instead of reading it.
    top_k: number of logits per token that a filling run keeps; None keeps all.
  """

  def __init__(self, store: LogitStore, top_k: int | None, fill: bool):
    """Records the arguments; see the class."""
    self.store = store
    self.fill = fill
    self.top_k = top_k
    self._shapes: tuple[int, int, int] | None = None

  def start(self, checkpoint: str) -> None:
    """Opens the store for the finished graph.

    Args:
      checkpoint: path of the teacher's checkpoint, without ".index".

    Raises:
      ValueError: if the store does not match the run, or top_k exceeds the
        vocabulary.
    """
    inputs, targets, vocab = self._shapes
    of_run = dict(**_of_run(checkpoint), inputs=inputs, targets=targets,
                  vocab=vocab)
    if not self.fill:
      self.store.open(**of_run)
      return
    if self.top_k is not None and self.top_k > vocab:
      raise ValueError(
          "logit_cache: top_k must be at most the size of the vocabulary, with "
          f"top_k={self.top_k}, vocabulary={vocab}. Set logit_cache.top_k.")
    self.store.start(About(**of_run, top_k=self.top_k))

  def read(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, vocab_dim: mtf.Dimension
  ) -> mtf.Tensor:
    """Reads the teacher's logits from the store.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      vocab_dim: vocabulary dimension of the student's logits.

    Returns:
      float32 [batch dims, length, vocab].

    Raises:
      ValueError: if the run is on TPU.
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
    """Writes logits to the store whenever the result is computed.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      logits: [batch dims, length, vocab].

    Returns:
      The logits, unchanged.

    Raises:
      ValueError: if the run is on TPU.
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
    """Returns a shape for logits whose rows are whole on each processor."""
    if on_tpu(inputs.mesh):
      raise ValueError(
          "logit_cache: the run must be on CPU or GPU, where Python can read "
          f"and write files, with directory={self.store.directory}, device=TPU."
          " Set logit_cache.directory = None.")
    self._shapes = (
        inputs.shape.dims[-1].size, targets.shape.dims[-1].size, vocab_dim.size)
    return targets.shape + [mtf.Dimension(CACHED_VOCAB, vocab_dim.size)]


def _of_run(checkpoint: str) -> dict[str, Any]:
  """Returns the fields of `About` that are known before the graph exists."""
  with tf.io.gfile.GFile(f"{checkpoint}.index", "rb") as f:
    teacher = hashlib.sha256(f.read()).hexdigest()
  return dict(teacher=teacher, mixture=gin.query_parameter("%MIXTURE_NAME"))


def _rows(ids: np.ndarray) -> np.ndarray:
  """Flattens the batch dimensions: [rows, length]."""
  return ids.reshape((-1, ids.shape[-1]))


@gin.configurable
def fill_logit_cache(
    estimator: Any,
    *arguments: Any,
    find_teacher: Callable[[], Any] = gin.REQUIRED,
    **kwargs: Any,
) -> None:
  """Writes a teacher's logits instead of training; a `train_model_fn`.

  Reads the batches that the run would train on. A run that was stopped resumes
  with the next batch.

  Args:
    estimator: estimator of the run.
    *arguments: see `mesh_tensorflow.transformer.utils.train_model`.
    find_teacher: returns the teacher, as `distill_from` does.
    **kwargs: see `arguments`.

  Raises:
    ValueError: if the teacher has no checkpoint, or an existing cache does not
      match the run.
  """
  checkpoint = find_teacher().trained()
  logits = logit_cache()
  store = logits.store
  if store.exists:  # checked here too: a full cache skips Logits.start
    store.open(**_of_run(checkpoint), top_k=logits.top_k)
  reader = _Evaluation(estimator, checkpoint, store.steps,
                       kwargs.get("seen_data_init_step", 0))
  utils.train_model(reader, *arguments, **kwargs)
  print(f"logit_cache: {store.directory} is filled", file=sys.stderr)


class _Evaluation:
  """The part of an Estimator that `train_model` uses; `train` evaluates."""

  def __init__(self, estimator: Any, checkpoint: str, done: int, first: int):
    """Records the arguments.

    Args:
      estimator: estimator of the teacher.
      checkpoint: path of the teacher's checkpoint.
      done: number of steps whose logits are already written.
      first: the step before the run's first.
    """
    self._estimator, self._checkpoint = estimator, checkpoint
    self._done, self._first = done, first

  def latest_checkpoint(self) -> str | None:
    """Returns a path if `train_model` must skip batches, else None."""
    return self._checkpoint if self._done else None

  def get_variable_value(self, name: str) -> int:
    """Returns the step to resume from."""
    del name
    return self._first + self._done

  def train(self, input_fn: Callable, max_steps: int, hooks: list) -> None:
    """Evaluates the teacher on the remaining batches."""
    del hooks
    steps = max_steps - self._first
    if steps > self._done:
      self._estimator.evaluate(
          input_fn, steps=steps - self._done, checkpoint_path=self._checkpoint,
          hooks=[_FillHook(self._checkpoint, self._done, steps)])


class _FillHook(tf.estimator.SessionRunHook):
  """A hook that opens the cache and records and prints its progress."""

  def __init__(self, checkpoint: str, done: int, steps: int):
    """Records the arguments; see `_Evaluation`."""
    self._checkpoint, self._done, self._steps = checkpoint, done, steps
    self._step = done

  def begin(self):
    """Opens the cache: the graph is complete and nothing has run."""
    logits, = tf.get_collection(FILLED)
    logits.start(self._checkpoint)
    self._store = logits.store
    self._start = self._printed = time.time()

  def after_run(self, run_context, run_values):
    """Counts a batch; at intervals, records and prints the progress."""
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
