"""What `benchmarks.trace` and `benchmarks.step_profile` say of a step."""

import io
import json
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import as_it_is

from benchmarks import step_profile, trace, worker
from benchmarks.harness import ROOT, Worker


@pytest.mark.parametrize("name,kind,part", [
    ("encoder/block_000/SwitchFFN/wi/einsum/MatMul", "_MklMatMul", "matmul"),
    ("encoder/block_000/moe_1d/einsum/Einsum", "Einsum", "matmul"),
    ("encoder/SelfAttention/q/adafactor/Mul", "Mul", "optimizer"),
    ("enc/wi/kernel/adafactor/add_up/MatMul", "_MklMatMul", "optimizer"),
    ("enc/rms_norm_gradients/MatMul", "_MklMatMul", "norm"),
    ("encoder/SelfAttention/attention/Softmax", "Softmax", "attention"),
    ("encoder/rms_norm_1/parallel_0/mul", "Mul", "norm"),
    ("encoder/SwitchFFN/rows_to_slots/GatherV2", "GatherV2",
     "routing and dispatch"),
    ("encoder/rows/GatherV2", "GatherV2", "embedding and loss"),
    ("while_loop/while/decoder/einsum_1/MatMul_3", "_MklMatMul", "logits"),
    ("while_loop/while/SwitchFFN/times_chosen/MatMul", "_MklMatMul",
     "chosen experts"),
    ("RecvTensor", "RecvTensor", "messages"),
    ("a/mul/_12", "_Recv", "messages"),
    ("global_step/add", "AddV2", "other")])
def test_what_an_operation_is_for(name, kind, part):
  assert trace.part_of(name, kind) == part


def test_flops_of_a_matmul():
  # [3, 4] x [4, 5]: 60 multiplications and as many additions.
  a, b = tf.zeros([3, 4]), tf.zeros([4, 5])
  assert trace.matmul_flops(tf.matmul(a, b).op) == 120
  assert trace.matmul_flops(tf.matmul(
      tf.zeros([4, 3]), b, transpose_a=True).op) == 120
  batch = tf.zeros([2, 4, 3])
  for y in (tf.matmul(batch, tf.zeros([2, 4, 5]), transpose_a=True),
            tf.raw_ops.BatchMatMulV3(
                x=batch, y=tf.zeros([2, 4, 5]), adj_x=True, Tout=tf.float32),
            tf.raw_ops.Einsum(inputs=[batch, tf.zeros([2, 4, 5])],
                              equation="xab,xac->xbc")):
    assert trace.matmul_flops(y.op) == 240
  assert trace.matmul_flops(tf.raw_ops.Einsum(
      inputs=[batch], equation="xab->xba").op) == 0
  assert trace.matmul_flops((a + 1.0).op) == 0


def test_bytes_that_an_operation_moves():
  # 12 and 20 floats in, 15 out.
  assert trace.moved_bytes(
      tf.matmul(tf.zeros([3, 4]), tf.zeros([4, 5])).op) == 4 * (12 + 20 + 15)
  # 8 of 4 bytes in, 8 of one byte out; texts and unknown shapes do not count.
  assert trace.moved_bytes(tf.cast(tf.zeros([8]), tf.bool).op) == 8 * (4 + 1)
  assert trace.moved_bytes(tf.constant("text").op) == 0
  assert trace.moved_bytes(
      tf.where(tf.constant([True, False])).op) == 2
  # 2 of 100 rows of 3 floats in, and out.
  assert trace.moved_bytes(
      tf.gather(tf.zeros([100, 3]), [5, 7]).op) == 4 * (6 + 6)


def test_summary_of_a_step():
  # 2 x 64^3 FLOP; 3 tensors of 64 x 64 floats, 16 KB each, at the most: what
  # comes out, the product and its square root.
  with tf.Graph().as_default() as graph:
    x = tf.random.uniform([64, 64])
    with tf.name_scope("rms_norm"):
      y = tf.sqrt(tf.matmul(x, x, name="product"))
    z = tf.matmul(y, x)
    traced = tf.RunMetadata()
    with tf.Session(config=as_it_is()) as session:
      session.run(z.op, options=tf.RunOptions(
          trace_level=tf.RunOptions.FULL_TRACE), run_metadata=traced)
  found = trace.summary(traced.step_stats, graph)
  assert found["matmul_gflop"] == pytest.approx(2e-9 * 64**3)
  assert set(found["seconds"]) >= {"matmul", "norm", "other"}
  assert found["busy_seconds"] == [pytest.approx(
      sum(found["seconds"].values()))]
  assert found["messages"] == 0 and found["operations"] >= 4
  moved = found["gb_per_second"]["matmul"] * found["seconds"]["matmul"]
  assert moved == pytest.approx(3 * 4e-9 * 64**2)
  assert 3 * .016 < sum(found["tensors_mb"].values()) < 4 * .017


class Profiled:
  """A subject that knows where its time went."""

  def profile(self):
    return {"seconds": {"matmul": 1.0}}


def test_worker_profiles():
  answers = io.StringIO()
  worker.serve(Profiled(), io.StringIO("profile\n"), answers)
  assert json.loads(answers.getvalue()) == {"seconds": {"matmul": 1.0}}


# Holds a thousand MB for a moment and then starts another process, which would
# have that peak by `getrusage`.
HOLDS = """
import subprocess, sys
from benchmarks import worker
held = bytearray(10**9)
held[::4096] = bytes([1]) * len(held[::4096])
del held
print(worker.peak_rss_mb(), flush=True)
subprocess.run(
    [sys.executable, "-c",
     "from benchmarks import worker; print(worker.peak_rss_mb())"], check=True)
"""


def test_peak_memory_is_of_the_process_alone():
  outer, inner = map(float, subprocess.run(
      [sys.executable, "-c", HOLDS], check=True, capture_output=True, text=True,
      cwd=ROOT).stdout.split())
  assert outer > 1000
  assert 5 < inner < 500


# Stands for a worker: what it is told to build is what it says.
FAKE = """
import json, sys
spec = json.loads(sys.argv[1])
print(json.dumps({"facts": {"rss_mb": {"libraries": spec["experts"]}}}),
      flush=True)
for line in sys.stdin:
  print(json.dumps(
      {"matmul_gflop_per_second": 1.0, "seconds": {"matmul": 0.5}}
      if line == "profile\\n" else
      {"seconds": [2.0] * int(line.split()[1]), "peak_rss_mb": 9.0}),
      flush=True)
"""


def test_profile_command(monkeypatch, tmp_path, capsys):
  script = tmp_path / "fake.py"
  script.write_text(FAKE)
  rates = {"gflop_per_second": 1.0, "gb_per_second": 2.0}
  monkeypatch.setattr(step_profile, "Worker", lambda job: Worker(
      job, [step_profile.sys.executable, str(script)]))
  monkeypatch.setattr(step_profile, "torch_rates", lambda: rates)
  monkeypatch.setattr(step_profile, "tensorflow_rates", lambda: rates)
  monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "7")  # put back by monkeypatch
  output = tmp_path / "profile.json"
  step_profile.main(["--experts", "4", "--rivals", "upstream",
                f"--output={output}"])
  record = json.loads(output.read_text())
  assert record["complete"] and record["rates"]["tensorflow"] == rates
  names = [step["name"] for step in record["steps"]]
  assert len(set(names)) == len(names)
  assert {"ours/train/e4/v512", "upstream/train/e8/v32128",
          "ours/two_processes"} < set(names)
  first = record["steps"][0]
  assert first["step_seconds"] == 2 and first["seconds"] == {"matmul": 0.5}
  assert first["rss_mb"] == {"libraries": 4}
  assert ("profile/ours/two_processes step=2.00 s, matmul 1 GFLOP/s; about 0 "
          "min left") in capsys.readouterr().out
