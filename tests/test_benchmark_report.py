"""What `benchmarks/` reports: tables, and where a training step goes."""

import json

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import profile, report
from benchmarks.harness import Claim


def made_up_records():
  def group(run, experts, ours, hf):
    return {"run": run, "name": f"e{experts}/v512", "measurements": {
        label: {"spec": {"vocabulary": 512, "experts": experts},
                "tokens_per_second": speed}
        for label, speed in (("ours", ours), ("hf", hf))}}

  claims = [Claim("train_step/hf/e8/v512", "g", "ours", "hf", target=1.5),
            Claim("train_step/x", "g", "a", "b", target=1.1, at_most=True),
            Claim("train_step/without", "g", "a", "b"),
            Claim("train_step/wait", "g", "a", None, "step_seconds")]
  return {"train_step": {
      "suite": "train_step", "complete": True,
      "machine": {
          "processor": "A processor", "cores": 2, "commit": "0123456789",
          "versions": {"python": "3.11", "torch": None}},
      "groups": [group(0, 1, 5000, 4000), group(0, 8, 6000, 3000),
                 group(1, 8, 7000, 3000),
                 {"run": 0, "name": "growth", "measurements": {"e8": {}}}],
      "results": [claims[0].result([2.0, 2.3333]), claims[1].result([1.2]),
                  claims[2].result([1.3]), claims[3].result([4.5])]}}


def test_report_tables():
  text = report.markdown(made_up_records())
  assert "| 512 | dense | 5,000 | 4,000 |" in text
  assert "| 512 | 8 | 6,500 | 3,000 |" in text
  assert ("| `train_step/hf/e8/v512` | 2.17 (2.00 to 2.33) | at least 1.5 "
          "| yes |") in text
  assert "| `train_step/x` | 1.20 | at most 1.1 | **no** |" in text
  assert "without" not in text and "| `train_step/wait` | 4.50 s |" in text
  assert "A processor, 2 cores; python 3.11; commit 0123456." in text


def test_report_of_a_profile():
  text = report.profile_table({
      "rates": {"torch": {"gflop_per_second": 164.6, "gb_per_second": 19.8}},
      "steps": [
          {"experts": 1, "step_seconds": 1.234, "matmul_gflop_per_second": 140,
           "seconds": {"matmul": 0.9, "norm": 0.1},
           "gb_per_second": {"matmul": 4.0, "norm": 7.6}},
          {"experts": 8, "step_seconds": 1.5, "matmul_gflop_per_second": 120,
           "seconds": {"matmul": 1.0, "optimizer": 0.25},
           "gb_per_second": {"optimizer": 12.0}}]})
  lines = text.splitlines()
  assert lines[0] == (
      "| experts | step | matmul | optimizer | norm | matmul GFLOP/s |")
  assert lines[2:4] == ["| dense | 1.23 | 0.90 | 0.00 | 0.10 (8) | 140 |",
                        "| 8 | 1.50 | 1.00 | 0.25 (12) | 0.00 | 120 |"]
  assert "165 GFLOP/s" in lines[-1] and "20 GB/s" in lines[-1]


@pytest.mark.parametrize("name,kind,part", [
    ("encoder/block_000/SwitchFFN/wi/einsum/MatMul", "_MklMatMul", "matmul"),
    ("encoder/SelfAttention/q/adafactor/Mul", "Mul", "optimizer"),
    ("enc/wi/kernel/adafactor/add_up/MatMul", "_MklMatMul", "optimizer"),
    ("enc/rms_norm_gradients/MatMul", "_MklMatMul", "norm"),
    ("encoder/SelfAttention/attention/Softmax", "Softmax", "attention"),
    ("encoder/rms_norm_1/parallel_0/mul", "Mul", "norm"),
    ("encoder/SwitchFFN/rows_to_slots/GatherV2", "GatherV2",
     "routing and dispatch"),
    ("encoder/rows/GatherV2", "GatherV2", "embedding and loss"),
    ("global_step/add", "AddV2", "other")])
def test_what_an_operation_is_for(name, kind, part):
  assert profile.part_of(name, kind) == part


def test_flops_of_a_matmul():
  # [3, 4] x [4, 5]: 60 multiplications and as many additions.
  a, b = tf.zeros([3, 4]), tf.zeros([4, 5])
  assert profile.matmul_flops(tf.matmul(a, b).op) == 120
  assert profile.matmul_flops(tf.matmul(
      tf.zeros([4, 3]), b, transpose_a=True).op) == 120
  batch = tf.zeros([2, 4, 3])
  for y in (tf.matmul(batch, tf.zeros([2, 4, 5]), transpose_a=True),
            tf.raw_ops.BatchMatMulV3(
                x=batch, y=tf.zeros([2, 4, 5]), adj_x=True, Tout=tf.float32)):
    assert profile.matmul_flops(y.op) == 240
  assert profile.matmul_flops((a + 1.0).op) == 0


def test_bytes_that_an_operation_moves():
  # 12 and 20 floats in, 15 out.
  assert profile.moved_bytes(
      tf.matmul(tf.zeros([3, 4]), tf.zeros([4, 5])).op) == 4 * (12 + 20 + 15)
  # 8 of 4 bytes in, 8 of one byte out; texts and unknown shapes do not count.
  assert profile.moved_bytes(tf.cast(tf.zeros([8]), tf.bool).op) == 8 * (4 + 1)
  assert profile.moved_bytes(tf.constant("text").op) == 0
  assert profile.moved_bytes(
      tf.where(tf.constant([True, False])).op) == 2


def test_report_command(tmp_path, capsys):
  (tmp_path / "train_step.json").write_text(
      json.dumps(made_up_records()["train_step"]))
  (tmp_path / "decode.json").write_text('{"suite": "decode"}')
  readme = tmp_path / "README.md"
  readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
  report.main([f"--results={tmp_path}", f"--readme={readme}"])
  text = readme.read_text()
  assert text.startswith("before\n") and text.endswith("after\n")
  assert "old" not in text and "| 512 | 8 |" in text
  assert (tmp_path / "train_step.png").stat().st_size > 1000
  printed = capsys.readouterr()
  assert "| 512 | 8 |" in printed.out
  assert "decode.json: not complete, left out" in printed.err
  report.main([f"--results={tmp_path}", f"--readme={readme}"])
  assert readme.read_text() == text


@pytest.mark.parametrize("text", [
    "", report.BEGIN, f"{report.END}{report.BEGIN}",
    f"{report.BEGIN}{report.END}{report.BEGIN}{report.END}"])
def test_report_needs_its_markers(text):
  with pytest.raises(ValueError, match="must have the markers once"):
    report.replace(text, "new")


def test_records_of_a_suite_are_joined(tmp_path):
  record = made_up_records()["train_step"]
  other = json.loads(json.dumps(record).replace("v512", "v4"))
  for name, content in (("a", record), ("b", other)):
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  joined = report.read(str(tmp_path))["train_step"]
  assert joined["groups"] == record["groups"] + other["groups"]
  assert [result["name"] for result in joined["results"]] == [
      result["name"] for result in record["results"] + other["results"]]
  other["machine"] |= {"commit": "another"}
  (tmp_path / "b.json").write_text(json.dumps(other))
  with pytest.raises(ValueError, match="records of one suite must be of one "
                     "machine and commit, with suite=train_step"):
    report.read(str(tmp_path))
