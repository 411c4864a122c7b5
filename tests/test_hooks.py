"""Session hooks."""

import os
import signal

import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.training import hooks, metrics


@pytest.mark.parametrize("seconds, text", [
    (12.4, "12 s"), (250, "4 min 10 s"), (11_100, "3 h 05 min")])
def test_duration(seconds, text):
  assert hooks.duration(seconds) == text


def progress(model_dir, **kwargs):
  defaults = dict(tokens_per_step=10, train_steps=7, record_steps=3,
                  print_seconds=1000)
  return lambda loss: hooks.ProgressHook(
      model_dir=str(model_dir), loss=loss,
      step_sums={"nats": 6 * loss, "targets": tf.minimum(loss, 4)},
      layer_metrics={"load": tf.stack([loss, 2 * loss])},
      **{**defaults, **kwargs})


def run_steps(make_hook, steps):
  """Counts steps under a hook; the 'loss' of a step is its number."""
  step = tf.train.get_or_create_global_step()
  loss = tf.cast(step + 1, tf.float32)
  with tf.control_dependencies([loss]):
    count = tf.assign_add(step, 1)
  hook = make_hook(loss)
  with tf.train.MonitoredSession(hooks=[hook]) as session:
    for _ in range(steps):
      if session.should_stop():
        break
      session.run(count)
  return hook


def test_progress_records_mean_losses_and_the_last_step(tmp_path, capsys):
  run_steps(progress(tmp_path), steps=7)
  records = metrics.read(str(tmp_path), "train")
  # Losses are 1..7; records at 3, 6 and the last step, 7: means 2, 5 and 7.
  assert [(r["step"], r["loss"]) for r in records] == [(3, 2), (6, 5), (7, 7)]
  assert records[0]["load"] == [3.0, 6.0]
  # Nats of real targets: 6 (1 + 2 + 3) / (1 + 2 + 3), 6 (4 + 5 + 6) / 12, 42/4.
  assert [r["nats_per_token"] for r in records] == [6, 7.5, 10.5]
  assert all(r["tokens_per_second"] > 0 for r in records)
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("step 7/7 | loss 7.000 | 10.500 nats a token | ")
  assert line.endswith("tokens/s | 0 s left")


def test_progress_writes_tensorboard(tmp_path):
  run_steps(progress(tmp_path), steps=3)
  tags = {v.tag for path in tmp_path.glob("events*")
          for event in tf.train.summary_iterator(str(path))
          for v in event.summary.value}
  assert {"loss", "tokens_per_second"} <= tags


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_hook_ends_after_the_step(number, capsys):
  before = signal.getsignal(number)

  class Kill(hooks.StopHook):
    def before_run(self, run_context):
      if run_context.session.run(tf.train.get_global_step()) == 2:
        os.kill(os.getpid(), number)

  run_steps(lambda loss: Kill(), steps=10)
  assert signal.getsignal(number) == before
  assert "saving a checkpoint, then stopping" in capsys.readouterr().err


def test_speed_is_the_median(tmp_path, monkeypatch):
  # Batches of 10 tokens after 9, 1, 1, 2 seconds: median 1.5.
  times = iter([0.0, 9.0, 10.0, 11.0, 13.0])
  monkeypatch.setattr(hooks.time, "perf_counter", lambda: next(times))
  with tf.Graph().as_default(), tf.Session() as session:
    session.run(tf.train.create_global_step().initializer)
    hook = hooks.EvaluationSpeedHook(str(tmp_path), 10)
    hook.after_create_session(session, None)
    for _ in range(4):
      hook.after_run(None, None)
    hook.end(session)
  record, = metrics.read(str(tmp_path), "eval_speed")
  assert record["step"] == 0
  assert record["tokens_per_second"] == pytest.approx(10 / 1.5)


def test_progress_without_targets_has_the_loss_only(tmp_path, capsys):
  def no_targets(loss):
    return hooks.ProgressHook(
        model_dir=str(tmp_path), loss=loss, step_sums={}, layer_metrics={},
        tokens_per_step=10, train_steps=3, record_steps=3, print_seconds=1000)

  run_steps(no_targets, steps=3)
  record, = metrics.read(str(tmp_path), "train")
  assert record["loss"] == 2 and "nats_per_token" not in record
  assert "nats" not in capsys.readouterr().err
