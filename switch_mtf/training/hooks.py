"""Session hooks of a training run: progress, metrics, speed, clean stop."""

import signal
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.training import metrics

FIRST_HEAT_MAP = 16  # number of records
INTERRUPTED = 130  # the exit code that a shell reports after Ctrl-C


def duration(seconds: float) -> str:
  """Returns the time as '3 h 05 min', '4 min 10 s' or '12 s'."""
  minutes, secs = divmod(int(round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02d} min"
  return f"{minutes} min {secs:02d} s" if minutes else f"{secs} s"


class ProgressHook(tf.estimator.SessionRunHook):
  """A hook that prints progress and records loss, speed and layers' metrics.

  A record covers the steps since the last record, or since the run was resumed.
  `loss` is the mean of what training minimises: T5 divides the sum of the
  targets' losses by the number of positions, including padding, and adds
  auxiliary losses. `nats_per_token` is the mean cross-entropy of a real target:
  an evaluation's `neg_log_perplexity` on the same texts, with the other sign.
  The layers' metrics are those of the record's own step, so that the other
  steps need not compute them.
  """

  def __init__(
      self, *, model_dir: str, loss: tf.Tensor, step_sums: dict,
      layer_metrics: dict, tokens_per_step: int, train_steps: int | None,
      record_steps: int, print_seconds: float):
    """Records its arguments.

    Args:
      model_dir: folder to write to.
      loss: scalar, the loss of the step.
      step_sums: "nats" and "targets" to scalars, the sum of the cross-entropies
        of the step's real targets and their number; empty if not known.
      layer_metrics: name of a metric to its tensor.
      tokens_per_step: number of tokens that a step reads.
      train_steps: last step of the run, or None if it is not known.
      record_steps: number of steps between records.
      print_seconds: seconds between printed lines.
    """
    self._model_dir = model_dir
    self._fetched = {"loss": loss, **step_sums}
    self._layer_metrics = layer_metrics
    self._tokens_per_step = tokens_per_step
    self._train_steps = train_steps
    self._record_steps = record_steps
    self._print_seconds = print_seconds
    self._steps: list[dict[str, float]] = []  # what they fetched
    self._records = 0
    self._last: dict[str, float] = {}

  def after_create_session(self, session, coord):
    """Starts the clocks."""
    del coord
    self._step = session.run(tf.train.get_global_step())
    self._start = (self._step, time.time())
    self._recorded = self._start
    self._printed = time.time()
    self._writer = tf.summary.FileWriterCache.get(self._model_dir)

  def before_run(self, run_context):
    """Fetches the loss, and the layers' metrics when a record is due."""
    fetches = {"step": self._fetched}
    if self._due(self._step + 1):
      fetches["layers"] = self._layer_metrics
    return tf.estimator.SessionRunArgs(fetches)

  def after_run(self, run_context, run_values):
    """Counts the step; writes a record and prints a line when due."""
    self._step += 1
    self._steps.append(run_values.results["step"])
    if "layers" in run_values.results:
      self._record(run_values.results["layers"])
    if time.time() - self._printed >= self._print_seconds:
      self._print()

  def end(self, session):
    """Prints the last line."""
    self._print()
    self._writer.flush()

  def _due(self, step: int) -> bool:
    """Returns whether a step has a record."""
    return step % self._record_steps == 0 or step == self._train_steps

  def _record(self, layers: dict[str, np.ndarray]) -> None:
    """Writes a record to `metrics.jsonl` and TensorBoard."""
    now = time.time()
    steps, seconds = self._step - self._recorded[0], now - self._recorded[1]
    self._last = _means(self._steps)
    record = {
        "kind": "train", "step": self._step, **self._last,
        "tokens_per_second": steps * self._tokens_per_step / seconds, **layers}
    metrics.append(self._model_dir, record)
    metrics.write_scalars(
        self._writer, {k: v for k, v in record.items() if k != "step"},
        self._step)
    self._records += 1
    # Each heat map shows the whole run, so few are needed: they are drawn when
    # the number of records has doubled.
    doubled = self._records >= FIRST_HEAT_MAP and (
        self._records & (self._records - 1) == 0)
    if layers and (doubled or self._step == self._train_steps):
      metrics.write_heat_maps(
          self._writer, metrics.read(self._model_dir, "train"))
    self._recorded = (self._step, now)
    self._steps = []

  def _print(self) -> None:
    """Prints step, losses, speed and the time left, unless no step is done."""
    now = time.time()
    steps, seconds = self._step - self._start[0], now - self._start[1]
    self._printed = now
    if not steps:
      return
    means = _means(self._steps) if self._steps else self._last
    nats, of, left = "", "", ""
    if "nats_per_token" in means:
      nats = f" | {means['nats_per_token']:.3f} nats a token"
    # The flags of the model API may ask for more steps than gin binds.
    if self._train_steps and self._step <= self._train_steps:
      of = f"/{self._train_steps:,}"
      remaining = (self._train_steps - self._step) * seconds / steps
      left = f" | {duration(remaining)} left"
    speed = steps * self._tokens_per_step / seconds
    print(f"step {self._step:,}{of} | loss {means['loss']:.3f}{nats} | "
          f"{speed:,.0f} tokens/s{left}", file=sys.stderr, flush=True)


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
  """Returns the loss of steps, and the nats of a real target if they have any.

  Args:
    steps: what each step fetched: its loss and, where known, the sum and the
      number of its targets' cross-entropies.
  """
  means = {"loss": float(np.mean([step["loss"] for step in steps]))}
  targets = sum(float(step.get("targets", 0)) for step in steps)
  if targets:
    means["nats_per_token"] = sum(
        float(step["nats"]) for step in steps) / targets
  return means


class EvaluationSpeedHook(tf.estimator.SessionRunHook):
  """A hook that records the speed of an evaluation: the forward pass."""

  def __init__(self, model_dir: str, tokens_per_step: int):
    """Records its arguments.

    Args:
      model_dir: folder to write to.
      tokens_per_step: number of tokens in a batch, including padding.
    """
    self._model_dir = model_dir
    self._tokens_per_step = tokens_per_step

  def after_create_session(self, session, coord):
    """Notes the step of the checkpoint; starts the clock."""
    del coord
    self._step = session.run(tf.train.get_global_step())
    self._times = [time.perf_counter()]

  def after_run(self, run_context, run_values):
    """Notes the time at which the batch was done."""
    self._times.append(time.perf_counter())

  def end(self, session):
    """Writes the speed of the median batch; a slow first one hardly counts."""
    seconds = np.median(np.diff(self._times))
    metrics.append(self._model_dir, {
        "kind": "eval_speed", "step": self._step,
        "tokens_per_second": self._tokens_per_step / seconds})


class StopHook(tf.estimator.SessionRunHook):
  """A hook that stops after the current step on SIGTERM or Ctrl-C.

  The run then saves a checkpoint. A second Ctrl-C stops at once.

  Attributes:
    stopped: whether a signal stopped the last training of this process.
  """

  stopped = False

  def begin(self):
    """Installs the handlers of the signals."""
    StopHook.stopped = False
    self._before = {
        number: signal.signal(number, self._stop)
        for number in (signal.SIGTERM, signal.SIGINT)}

  def after_run(self, run_context, run_values):
    """Asks the session to end if a signal has arrived."""
    if self.stopped:
      run_context.request_stop()

  def end(self, session):
    """Restores the previous handlers."""
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _stop(self, number, frame):
    """Handles a signal; the next Ctrl-C raises KeyboardInterrupt."""
    print(f"{signal.Signals(number).name}: saving a checkpoint, then stopping. "
          "Run the same command to resume.", file=sys.stderr, flush=True)
    StopHook.stopped = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
