"""What is put around every model graph."""

import types

import gin
import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.layers import summaries
from switch_mtf.training import hooks, model_fn
from switch_mtf.upstream import seams


def run_of(mode, model_dir, **changed):
  return seams.ModelRun(**{
      "mode": mode, "use_tpu": False, "model_dir": model_dir,
      "tokens_per_step": 10, "mesh_shape": None, "layout_rules": None,
      "keep_checkpoint_max": 2, **changed})


def spec_of(loss, **kinds):
  return tf.estimator.EstimatorSpec(
      loss=loss, train_op=tf.no_op(), **{"mode": "train", **kinds})


@pytest.mark.parametrize("steps", [0, -1])
def test_records_need_steps(steps):
  with pytest.raises(ValueError, match=(
      f"progress: record_steps must be at least 1, with record_steps={steps}")):
    model_fn.progress(record_steps=steps)


def test_dtypes_of_activations():
  assert model_fn.precision("bfloat16") == "bfloat16"
  with pytest.raises(ValueError, match="precision: activation_dtype must be "
                     "one of None, float32, bfloat16, with .*'float16'"):
    model_fn.precision("float16")


def test_the_dtype_is_bound_before_the_graph(clean_gin, tmp_path):
  gin.bind_parameter("precision.activation_dtype", "bfloat16")
  model_fn.TrainingExtension().before_graph(run_of("train", str(tmp_path)))
  assert gin.query_parameter(
      "utils.get_variable_dtype.activation_dtype") == "bfloat16"


def test_training_gets_its_hooks_and_loses_its_line_a_step(tmp_path):
  tf.train.create_global_step()
  loss = tf.constant(2.0)
  printed = tf.Print(loss, [loss], "step, tf_loss: ")
  spec = model_fn.TrainingExtension().finish(
      run_of("train", str(tmp_path)), spec_of(printed))
  assert spec.loss is loss
  assert [type(hook) for hook in spec.training_chief_hooks] == [
      hooks.ProgressHook, hooks.StopHook]


def test_on_tpu_a_spec_stays_as_it_is(tmp_path):
  spec = spec_of(tf.constant(2.0))
  assert model_fn.TrainingExtension().finish(
      run_of("train", str(tmp_path), use_tpu=True), spec) is spec


def test_evaluation_weighs_layers_by_real_targets(tmp_path):
  # Batches of 3 and 1 real targets with a load of 1 and 5: 8 / 4 = 2.
  load, real = tf.placeholder(tf.float32, []), tf.placeholder(tf.float32, [4])
  tf.add_to_collection(summaries.METRICS_COLLECTION, ("load", load))
  given = types.SimpleNamespace(
      eval_metrics=(lambda weights: {}, [real]), evaluation_hooks=())
  given._asdict = lambda: vars(given) | {"_asdict": None}

  class Spec(types.SimpleNamespace):
    def _asdict(self):
      return vars(self)

  spec = model_fn._extend_eval(
      run_of("eval", str(tmp_path)),
      Spec(eval_metrics=given.eval_metrics, evaluation_hooks=()))
  metric_fn, tensors = spec.eval_metrics
  value, update = metric_fn(*tensors)["load"]
  with tf.Session() as session:
    session.run(tf.local_variables_initializer())
    session.run(update, {load: 1.0, real: [1, 1, 1, 0]})
    session.run(update, {load: 5.0, real: [1, 0, 0, 0]})
    assert session.run(value) == 2.0
  assert isinstance(spec.evaluation_hooks[0], hooks.EvaluationSpeedHook)
