"""Whole runs of `run_t5.py`, as a user starts them, on a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.runs import ROOT, losses, run, same_weights, succeed, weights

from benchmarks.scale import free_ports
from switch_mtf.training import metrics

TINY = "tests/gin/tiny.gin"
STEPS = 200
LAYER = "encoder/block_000/layer_001"


def training_flags(steps=STEPS):
  return [f"--gin_file={TINY}", f"--gin_param=train_steps = {steps}",
          "--gin_param=progress.record_steps = 1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A model_dir after `STEPS` steps, and what the run printed."""
  model_dir = tmp_path_factory.mktemp("runs") / "trained"
  return model_dir, succeed(model_dir, *training_flags(), forked=False)


def test_training_prints_progress_and_nothing_else(trained):
  # On a fresh machine the bundled text is prepared now.
  lines = [line for line in trained[1].stderr.splitlines()
           if not line.startswith("public_domain_text: prepared in ")]
  # Two layers, each with SwitchFFN's default coefficient, .01.
  assert lines.pop(0) == (
      "load_balancing_loss: 2 layers, together weighing 0.02 times their mean")
  pattern = (r"step [\d,]+/200 \| loss \d\.\d{3} \| \d\.\d{3} nats a token \| "
             r"[\d,]+ tokens/s \| .* left")
  assert lines and all(re.fullmatch(pattern, line) for line in lines), lines


def test_activations_can_be_bfloat16(trained, tmp_path):
  # T5's main asks for float32 wherever there is no TPU.
  succeed(tmp_path, *training_flags(steps=1),
          "--gin_param=precision.activation_dtype = 'bfloat16'")
  config = (tmp_path / "operative_config.gin").read_text()
  assert "get_variable_dtype.activation_dtype = 'bfloat16'" in config
  (_, rounded), = losses(tmp_path)
  _, loss = losses(trained[0])[0]
  assert rounded != loss
  assert rounded == pytest.approx(loss, rel=.02)  # 8 bits


def test_training_learns(trained):
  found = losses(trained[0])
  assert [step for step, _ in found] == list(range(1, STEPS + 1))
  # A model that knows nothing has ln(1152) = 7.05 a token, or about 3.9 a
  # position, since a target is about 9 tokens of 16 positions.
  assert 3.5 < found[0][1] < 7.5
  assert found[-1][1] < 0.75 * found[0][1]


def test_training_records_every_layer(trained):
  record = metrics.read(str(trained[0]), "train")[-1]
  for layer in (LAYER, "decoder/block_000/layer_002"):
    assert len(record[f"{layer}/expert_load"]) == 4
    assert sum(record[f"{layer}/expert_load"]) == pytest.approx(1, abs=1e-5)
    assert 0 <= record[f"{layer}/dropped_fraction"] < 1
    assert 0 < record[f"{layer}/router_entropy"] <= np.log(4) + 1e-5
    assert record[f"{layer}/load_balancing_loss"] >= 0.9
  tags = {v.tag for path in trained[0].glob("events*")
          for event in tf.train.summary_iterator(str(path))
          for v in event.summary.value}
  assert {f"{LAYER}/expert_load/max", f"{LAYER}/router_entropy",
          f"{LAYER}/expert_load_by_step"} <= tags


def test_equal_seeds_give_bit_identical_runs(trained, tmp_path):
  succeed(tmp_path, *training_flags())
  assert losses(tmp_path) == losses(trained[0])
  assert same_weights(weights(tmp_path), weights(trained[0]))


def test_interrupted_run_goes_on_as_if_it_had_not_been(trained, tmp_path):
  child = subprocess.Popen(
      [sys.executable, "run_t5.py", f"--model_dir={tmp_path}",
       *training_flags()], cwd=ROOT, stderr=subprocess.PIPE, text=True)
  deadline = time.time() + 200
  while len(losses(tmp_path)) < 20 and time.time() < deadline:
    time.sleep(0.05)
  child.send_signal(signal.SIGTERM)
  _, printed = child.communicate(timeout=100)
  assert child.returncode == 130
  assert "SIGTERM: saving a checkpoint" in printed
  stopped_at = losses(tmp_path)[-1][0]
  assert 20 <= stopped_at < STEPS
  assert f"Stopped at step {stopped_at} of 200." in printed

  succeed(tmp_path, *training_flags())
  assert losses(tmp_path) == losses(trained[0])
  assert same_weights(weights(tmp_path), weights(trained[0]))


def test_perplexity_eval(trained):
  done = succeed(
      trained[0], f"--gin_file={TINY}",
      "--gin_file=gin/runs/perplexity_eval.gin",
      "--gin_param=perplexity_eval_steps = 4",
      "--gin_param=eval_checkpoint_step = -1")
  record, = metrics.read(str(trained[0]), "eval")
  assert record["step"] == STEPS
  assert record["name"] == "public_domain_span_corruption_1k_validation_16"
  assert -7 < record["neg_log_perplexity"] < -4
  assert sum(record[f"{LAYER}/expert_load"]) == pytest.approx(1, abs=1e-5)
  assert f"neg_log_perplexity {record['neg_log_perplexity']:.4f}" in done.stdout


def test_eval_decodes_and_scores_examples(trained):
  succeed(
      trained[0], f"--gin_file={TINY}", "--gin_file=gin/runs/eval.gin",
      "--gin_param=eval_checkpoint_step = -1",
      "--gin_param=eval_batch_size = 4", "--gin_param=eval_examples = 8")
  folder = trained[0] / "validation_eval"
  predictions, = folder.glob("*_200_predictions")
  assert len(predictions.read_text().splitlines()) == 8
  targets, = folder.glob("*_targets")
  assert targets.read_text().count("<extra_id_0>") == 8
  tags = {v.tag for path in folder.glob("events*")
          for event in tf.train.summary_iterator(str(path))
          for v in event.summary.value}
  assert any(tag.startswith("eval/public_domain_span_corruption_1k/")
             for tag in tags)


def test_infer_from_the_operative_config(trained, tmp_path):
  inputs = tmp_path / "inputs"
  inputs.write_text("The state of the <extra_id_0> is strong.\n" * 3)
  succeed(
      trained[0], f"--gin_file={trained[0]}/operative_config.gin",
      "--gin_file=gin/runs/infer.gin", "--gin_file=greedy_decode.gin",
      f"--gin_param=input_filename = '{inputs}'",
      f"--gin_param=output_filename = '{tmp_path}/outputs'")
  outputs = (tmp_path / "outputs-200").read_text().splitlines()
  assert len(outputs) == 3
  assert len(set(outputs)) == 1  # greedy, and nothing dropped by its neighbours
  assert not outputs[0].startswith("b'")  # text

  succeed(
      trained[0], f"--gin_file={TINY}", "--gin_file=gin/runs/export.gin",
      f"--gin_param=export_path = '{tmp_path}/export'")
  assert exported(tmp_path / "export", "The state of the <extra_id_0> is "
                  "strong.") == outputs[0]


def exported(folder, text):
  """What the SavedModel in a folder makes of a string."""
  path, = folder.iterdir()
  with tf.Session() as session:
    model = tf.saved_model.loader.load(session, ["serve"], str(path))
    signature = model.signature_def["serving_default"]
    output, = session.run(
        signature.outputs["outputs"].name,
        {signature.inputs["inputs"].name: [text]})
  return output.decode()


def test_score_prefers_what_is_likely(trained, tmp_path):
  (tmp_path / "inputs").write_text("The law of the <extra_id_0>.\n" * 2)
  (tmp_path / "targets").write_text("<extra_id_0> the\n<extra_id_0> Zanzibar\n")
  succeed(
      trained[0], f"--gin_file={TINY}", "--gin_file=gin/runs/score.gin",
      f"--gin_param=inputs_filename = '{tmp_path}/inputs'",
      f"--gin_param=targets_filename = '{tmp_path}/targets'",
      f"--gin_param=scores_filename = '{tmp_path}/out'")
  likely, unlikely = (
      float(line) for line in (tmp_path / "out.scores").read_text().split())
  assert 0 > likely > unlikely


def test_fine_tuning_starts_from_the_checkpoint(trained, tmp_path):
  # Nothing is learnt, so the weights are still those of the checkpoint.
  done = succeed(
      tmp_path, f"--gin_file={TINY}", "--gin_file=gin/runs/finetune.gin",
      f"--gin_param=init_checkpoint = '{trained[0]}/model.ckpt-{STEPS}'",
      f"--gin_param=pretrained_steps = {STEPS}",
      f"--gin_param=train_steps = {STEPS + 2}",
      "--gin_param=MIXTURE_NAME = 'public_domain_span_corruption_1k'",
      "--gin_param=sequence_length = {'inputs': 32, 'targets': 16}",
      "--gin_param=batch_size = 4", "--gin_param=learning_rate = 0.0",
      "--gin_param=progress.record_steps = 1")
  assert [step for step, _ in losses(tmp_path)] == [STEPS + 1, STEPS + 2]
  before, after = weights(trained[0]), weights(tmp_path)
  assert after.pop("global_step") == before.pop("global_step") + 2
  names = [name for name in before if "_slot_" not in name]
  assert names and all(np.array_equal(before[n], after[n]) for n in names)
  assert (f"init_checkpoint: {len(names)} of {len(names)} weights and "
          f"{len(before) - len(names)} optimizer slots from "
          f"{trained[0]}/model.ckpt-{STEPS}; the step count continues"
          ) in done.stderr
  config = (tmp_path / "operative_config.gin").read_text()
  assert re.search(r"^expert_dropout_rate = 0.4$", config, re.MULTILINE)
  assert "SwitchFFN.dropout_rate = %expert_dropout_rate" in config


@pytest.mark.parametrize("layout", [
    "cpu_4_expert_model", "cpu_4_expert_replicas"])
def test_layout_changes_no_loss(trained, tmp_path, layout):
  # In float32 the order of sums is all that differs.
  succeed(tmp_path, *training_flags(3),
          f"--gin_param=utils.run.total_run_steps = {STEPS}",
          f"--gin_file=gin/layouts/{layout}.gin")
  found = losses(tmp_path)
  assert len(found) == 3
  np.testing.assert_allclose(found, losses(trained[0])[:3], rtol=1e-5)


def test_two_processes_change_no_loss(trained, tmp_path, monkeypatch):
  # As docs/layouts.md has it.
  page = (ROOT / "docs/layouts.md").read_text()
  code = re.search(r'python -c "\n(.*?)" 0', page, re.DOTALL).group(1)
  config = re.search(r"TF_CONFIG='(.*?)'", page).group(1)
  for host, port in zip(("HOST0", "HOST1"), free_ports(2), strict=True):
    code, config = (text.replace(f"{host}:2222", f"localhost:{port}")
                    for text in (code, config))
  monkeypatch.setenv("TF_CONFIG", config)
  servers = [subprocess.Popen([sys.executable, "-c", code, str(task)])
             for task in range(2)]
  try:
    succeed(tmp_path, *training_flags(2),
            f"--gin_param=utils.run.total_run_steps = {STEPS}",
            "--gin_file=gin/layouts/cpu_cluster_2_expert.gin", forked=False)
  finally:
    for server in servers:
      server.kill()
      server.wait()
  found = losses(tmp_path)
  assert len(found) == 2
  np.testing.assert_allclose(found, losses(trained[0])[:2], rtol=1e-5)


def test_model_api_trains(tmp_path):
  succeed(
      tmp_path, f"--gin_file={TINY}", "--use_model_api", "--mode=train",
      "--train_steps=3", "--batch_size=4", "--input_sequence_length=32",
      "--target_sequence_length=16", "--model_parallelism=1",
      "--mixture_or_task=public_domain_span_corruption_1k")
  assert tf.train.latest_checkpoint(str(tmp_path)).endswith("model.ckpt-3")


def test_another_models_checkpoint_is_refused_and_kept(trained):
  before = sorted(os.listdir(trained[0]))
  done = run(trained[0], *training_flags(STEPS + 100),
             "--gin_param=num_experts = 8")
  assert done.returncode == 1
  assert "must be of this model" in done.stderr
  assert ("decoder/block_000/layer_002/SwitchFFN/router/kernel is [16, 4] "
          "in the checkpoint and [16, 8] in the model") in done.stderr
  assert "SwitchFFN.num_experts differs" in done.stderr
  assert "Traceback" not in done.stderr
  after = [name for name in sorted(os.listdir(trained[0]))
           if not name.startswith("events")]
  assert after == [n for n in before if not n.startswith("events")]


@pytest.mark.parametrize("flags, text", [
    (["--gin_file=tests/gin/tinny.gin"], "nearest: tests/gin/tiny.gin"),
    ([f"--gin_file={TINY}", "--gin_param=SwitchFFN.num_expert = 2"],
     "parameter=num_expert, nearest: num_experts"),
    ([f"--gin_file={TINY}", "--gin_param=SwitchFFN.group_size = 48"],
     "Set encoder/SwitchFFN.group_size to a divisor of 128"),
    ([f"--gin_file={TINY}", "--gin_param=d_ff = 33",
      "--gin_param=utils.run.mesh_shape = 'model:2'"],
     "dimension d_ff=33, mesh axis model=2"),
    ([f"--gin_file={TINY}", "--gin_param=num_experts = 3",
      "--gin_param=utils.run.mesh_shape = 'batch:2'"],
     "num_experts=3, axis size=2"),
    ([f"--gin_file={TINY}", "--gin_param=MIXTURE_NAME = 'public_domain'"],
     "mixture_or_task_name=public_domain"),
    (["training.gin"], "argument=training.gin"),
    (["--use_model_api"], "--gin_file must be given"),
])
def test_bad_input_is_explained(tmp_path, flags, text):
  done = run(tmp_path / "new", *flags)
  assert done.returncode == 1
  assert text in done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.glob("new/model.ckpt*"))


def test_demo_resumes_and_redraws(tmp_path):
  flags = ["--gin_file=gin/experiments/demo.gin",
           *(f"--gin_param={p}" for p in (
               "train_steps = 6", "save_checkpoints_steps = 3", "d_model = 16",
               "num_layers = 1",
               "perplexity_eval_steps = 1", "fill_blanks.examples_per_task = 1",
               "progress.record_steps = 2"))]
  first = succeed(tmp_path, *flags, forked=False)
  assert "switch is " in first.stdout
  report = tmp_path / "report"
  result = json.loads((report / "result.json").read_text())
  assert set(result["models"]) == {"dense", "switch"}
  pictures = {p.name for p in report.glob("*.png")}
  assert pictures == {"curves.png", "expert_load_switch.png",
                      "expert_sources_switch.png"}
  text = (report / "report.md").read_text()
  assert all(f"({name})" in text for name in pictures)
  blanks = json.loads((tmp_path / "switch_seed0/blanks.json").read_text())
  # 32 tokens of a word piece each, and targets long enough for their spans.
  assert all(len(b["text"]) > 60 and "[...]" not in b["truth"] for b in blanks)

  (report / "curves.png").unlink()
  again = succeed(tmp_path, *flags)
  assert "All 2 runs were finished: drawing the report again" in again.stderr
  assert "step " not in again.stderr
  assert (report / "curves.png").exists()
