"""Every evaluation is printed and recorded, with what it was of."""

import gin
import numpy as np
import pytest

import switch_mtf.kernels.adafactor  # noqa: F401  (registers it)
import switch_mtf.layers.dispatch  # noqa: F401  (registers drop_nothing)
import switch_mtf.layers.switch_ffn  # noqa: F401  (registers SwitchFFN)
from switch_mtf.training import evaluations, metrics, outcomes

pytestmark = pytest.mark.usefixtures("clean_gin")


def test_a_loss(tmp_path, capsys):
  gin.parse_config("utils.run.dataset_split = 'validation'")
  before = outcomes.so_far()
  evaluations.record(str(tmp_path), "eval", "task_validation_64", 1200, {
      "loss": np.float32(4.25), "neg_log_perplexity": np.float32(-4.25),
      "a/expert_load": np.array([1.0, 2.0], np.float32)})
  assert capsys.readouterr().out == (
      "task_validation_64 | step 1,200 | neg_log_perplexity -4.2500\n")
  assert metrics.read(str(tmp_path), "eval") == [{
      "kind": "eval", "name": "task_validation_64", "step": 1200,
      "split": "validation", "examples": 64, "loss": 4.25,
      "neg_log_perplexity": -4.25, "a/expert_load": [1.0, 2.0]}]
  assert outcomes.so_far() == before + 1


def test_metrics_of_a_task(tmp_path, capsys):
  gin.parse_config("utils.run.dataset_split = 'test'")
  evaluations.record(str(tmp_path), "task_metrics", "qa", 20, {
      "em": 1.5, "f1": np.float64(2.0), "examples": 8})
  assert capsys.readouterr().out == (
      "qa | test | step 20 | em 1.5000 | f1 2.0000\n")
  assert metrics.read(str(tmp_path), "task_metrics") == [{
      "kind": "task_metrics", "name": "qa", "step": 20, "split": "test",
      "examples": 8, "em": 1.5, "f1": 2.0}]


TRAINED = """
import switch_mtf.layers.switch_ffn
num_experts = 4
encoder/SwitchFFN.num_experts = %num_experts
decoder/SwitchFFN.capacity_factor_eval = 2.0
SwitchFFN.hidden_size = 8
run.train_steps = 20
"""


@pytest.mark.parametrize("now, different", [
    ("SwitchFFN.num_experts = 4\nSwitchFFN.hidden_size = 8", {}),
    ("x = 5\nswitch_mtf.layers.switch_ffn.SwitchFFN.num_experts = %x",
     {"encoder/SwitchFFN.num_experts": "5"}),
    ("SwitchFFN.capacity_factor_eval = 1.0\n"
     "decoder/SwitchFFN.capacity_factor_eval = 3.0",
     {"decoder/SwitchFFN.capacity_factor_eval": "3.0"}),
    ("utils.run.train_steps = 3", {})])
def test_bindings_that_differ(now, different, tmp_path, capsys):
  (tmp_path / "operative_config.gin").write_text(TRAINED)
  gin.parse_config(now)
  assert evaluations.differing_bindings(str(tmp_path)) == different
  evaluations.record(str(tmp_path), "eval", "t", 1, {})
  record, = metrics.read(str(tmp_path), "eval")
  assert record.get("bindings", {}) == different
  printed = capsys.readouterr().out
  assert all(f"| {k} = {v}" in printed for k, v in different.items())


def test_a_folder_without_a_configuration(tmp_path):
  assert evaluations.differing_bindings(str(tmp_path)) == {}


@pytest.mark.parametrize("now, different", [
    ("Bitransformer.decode.beam_size = 4\n"
     "Bitransformer.decode.max_decode_length = 24",
     {"Bitransformer.decode.beam_size": "4"}),
    ("drop_nothing.value = True", {"drop_nothing.value": "True"}),
    ("FewPassAdafactor.decay_rate = 0.5", {})])
def test_bindings_that_only_an_evaluation_uses(now, different, tmp_path):
  (tmp_path / "operative_config.gin").write_text(TRAINED)
  gin.parse_config(now)
  assert evaluations.differing_bindings(str(tmp_path)) == different
