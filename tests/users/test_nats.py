"""The nats of a training step's targets are those of an evaluation."""

import pytest
from helpers.runs import ROOT, succeed

from switch_mtf.training import metrics

# Padded targets, and a split with one pair: every batch is made of it, however
# it is packed. Nothing is learnt, dropped or explored, so that the evaluation
# after the step asks the same.
TASK = '''
import seqio
import tensorflow as tf

from tasks import vocabularies


def pair(split, shuffle_files=False, seed=None):
  return tf.data.Dataset.from_tensors({
      "inputs": "What is the state of the union?",
      "targets": "The state of the union is strong."})


seqio.TaskRegistry.add(
    "one_pair", source=seqio.FunctionDataSource(
        pair, splits=["train", "validation"]),
    preprocessors=[
        seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
        name: seqio.Feature(vocabularies.SMALL_1K, add_eos=True)
        for name in ("inputs", "targets")})
'''
PARAMS = (
    "MIXTURE_NAME = 'one_pair'", "train_steps = 1", "learning_rate = 1e-30",
    "sequence_length = {'inputs': 32, 'targets': 48}",
    "SwitchFFN.capacity_factor_train = None",
    "SwitchFFN.capacity_factor_eval = None",
    "SwitchRouter.exploration = @Argmax()", "dropout_rate = 0.0",
    "perplexity_eval_steps = 1",
    "train_then.phases = ['gin/runs/perplexity_eval.gin']")


@pytest.mark.parametrize("params", [
    [],
    ["utils.run.mesh_shape = 'a:2'", "utils.run.layout_rules = 'batch:a'",
     "utils.run.mesh_devices = ['cpu:0', 'cpu:0']",
     "utils.serialize_num_microbatches.tokens_per_microbatch_per_replica = 80"],
    ["decoder/Unitransformer.loss_fn = None",
     "decoder/Unitransformer.z_loss = 0.1",
     "decoder/Unitransformer.label_smoothing = 0.1"],
], ids=["ours", "microbatches of a mesh", "T5's loss with z-loss"])
def test_nats(params, tmp_path, monkeypatch):
  (tmp_path / "one_pair_task.py").write_text(TASK)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
  done = succeed(
      tmp_path / "run", "--gin_file=tests/gin/tiny.gin",
      "--module_import=one_pair_task",
      *(f"--gin_param={param}" for param in (*PARAMS, *params)), forked=False)
  trained, = metrics.read(str(tmp_path / "run"), "train")
  evaluated, = metrics.read(str(tmp_path / "run"), "eval")
  nats = trained["nats_per_token"]
  assert nats == pytest.approx(-evaluated["neg_log_perplexity"], rel=1e-5)
  assert f"| {nats:.3f} nats a token |" in done.stderr
  # T5's loss is divided by the padded positions too, and has further terms.
  assert abs(trained["loss"] / nats - 1) > 0.05
