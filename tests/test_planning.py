"""The planner: what it reads from a graph, against hand-worked examples, the
paper, and graphs that are lowered to be run."""

import collections
import json
import math
import re
import shlex
import subprocess
import sys
import types
from unittest import mock

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT
from mesh_tensorflow.transformer import utils

import tasks  # noqa: F401
from switch_mtf.planning import (
  configuration,
  devices,
  explain,
  fit,
  graph,
  memory,
  picture,
  report,
  sizes,
)
from switch_mtf.planning import plan as plans

TINY = "tests/gin/tiny.gin"
# Strategies of section 5 of the paper, on small meshes.
STRATEGIES = {
    "data": ("batch:2", "batch:batch"),
    "model": ("model:2", "d_ff:model,heads:model,vocab:model"),
    "model and data": ("model:2,batch:2", "batch:batch,d_ff:model,heads:model"),
    "expert and data": ("batch:2", "batch:batch,experts:batch"),
    "expert, model and data": (
        "model:2,batch:2", "batch:batch,experts:batch,d_ff:model,heads:model"),
}
GROUP = "SwitchFFN.group_size = 8"


def planned(*params, mesh_shape=None, layout=None, device="cpu",
            files=(TINY,)):
  params = list(params)
  if layout:
    params.append(f"utils.run.layout_rules = '{layout}'")
  return plans.plan(list(files), params, device=device, mesh_shape=mesh_shape)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_without_a_mesh():
  plan = planned()
  found = plan.as_dict()
  # As the run counts them: README's and test_run_t5's tiny model.
  assert found["parameters"] == sum(found["parameters_by_stack"].values())
  # One of 4 experts a layer, of 2 layers, each of 2 * 16 * 32 weights.
  assert found["expert_parameters"] == 2 * 4 * 2 * 16 * 32
  assert found["parameters"] - found["active_parameters_per_token"] == (
      2 * 3 * 2 * 16 * 32)
  assert found["communication_per_step"] == []
  assert found["cores"] == 1 and found["fits"]
  # Adafactor keeps what it has for tiny matrices whole.
  assert found["memory_per_core"]["weights"] == 4 * found["parameters"]
  assert found["memory_per_core"]["peak"] == sum(
      size for kind, size in found["memory_per_core"].items()
      if kind != "peak")
  # Group 16 and 4 experts: int(16 * 1.25 / 4) slots.
  assert {stack: room["capacity"] for stack, room in found[
      "capacity"].items()} == {"encoder": 5, "decoder": 5}
  assert plan.loss_weights == {"load_balancing_loss": [0.01, 0.01]}
  json.dumps(found)


def counters_of_a_run(mesh_shape, layout):
  """What `lowering.counters` of the real mesh implementation has, by kind."""
  config = configuration.resolve(
      [TINY], [GROUP, f"utils.run.layout_rules = '{layout}'"], device="cpu",
      mesh_shape=mesh_shape)
  lowerings = []

  class Lowering(mtf.Lowering):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      lowerings.append(self)

  with mock.patch.object(mtf, "Lowering", Lowering):
    tf.train.create_global_step()
    utils.tpu_estimator_model_fn(**config.arguments | {"model_dir": ""})(
        graph._features(config), None, "train", params={})
  found = collections.Counter()
  for name, size in lowerings[0].counters:
    kind, _, rest = name.partition("/")
    if kind in ("allreduce", "alltoall", "allconcat", "shift"):
      axes = sorted(int(a) for a in rest.split("/")[0].strip("[]").split(","))
      names = ",".join(config.mesh_shape.dims[a].name for a in axes)
      found[kind, names] += size
  return found, config.mesh_shape.size


@pytest.mark.parametrize("name", STRATEGIES)
def test_communication_is_that_of_the_run(name):
  mesh_shape, layout = STRATEGIES[name]
  expected, processors = counters_of_a_run(mesh_shape, layout)
  plan = planned(GROUP, mesh_shape=mesh_shape, layout=layout)
  assert {(entry["kind"], entry["mesh_axis"]): entry["elements"] * processors
          for entry in plan.communication} == expected
  assert expected
  for entry in plan.communication:  # float32, beside scalars of counts
    assert entry["bytes"] == 4 * entry["elements"]
  assert ("alltoall", "batch") in expected or "expert" not in name


def test_weights_are_split_as_the_layout_says():
  whole = planned(GROUP)
  split = planned(GROUP, mesh_shape="model:2,batch:2",
                  layout="batch:batch,experts:batch,d_ff:model")
  experts = whole.parameters.experts
  assert whole.memory.weights - split.memory.weights == 4 * experts * 3 // 4
  # The checkpoint's copy is whole, and beside the slices.
  assert split.memory.masters >= 4 * whole.parameters.total
  assert whole.memory.masters == 0


def test_tpu_computes_as_on_tpu():
  # Activations stay in the dtype that is bound, where T5's main makes them
  # float32 elsewhere. Tokens go to experts in it.
  params = [GROUP, "utils.get_variable_dtype.activation_dtype = 'bfloat16'"]
  layout = dict(mesh_shape="batch:2", layout="batch:batch,experts:batch")
  width = {}
  for device in ("tpu_v3", "h100"):
    plan = planned(*params, device=device, **layout)
    sent, = (e for e in plan.communication if e["kind"] == "alltoall")
    width[device] = sent["bytes"] / sent["elements"]
  assert width == {"tpu_v3": 2, "h100": 4}


def test_worst_moment_by_hand():
  # Float32, so 4 bytes an entry. y = x w is [100, 30]; z = exp(y) may have y's
  # memory, since nobody else reads y; t = z transposed needs its own; the sum
  # is 4 bytes. At most z and t are there: 2 * 12,000 bytes. A reshape is none.
  with tf.Graph().as_default():
    x, w = tf.placeholder(tf.float32, [100, 20]), tf.ones([20, 30])
    y = tf.reshape(tf.matmul(x, w), [30, 100])
    z = tf.exp(y)
    t = tf.transpose(z)
    total = tf.reduce_sum(t)
    step = types.SimpleNamespace(
        train_op=total.op, gradients=[],
        lowering=types.SimpleNamespace(
            tensors={}, graph=types.SimpleNamespace(operations=[])))
    with mock.patch.object(memory, "_kinds", lambda _: lambda op: "dispatch"):
      worst = memory._worst_moment(step)
  assert worst["gradients"] == worst["activations"] == 0
  assert 24_000 <= worst["dispatch"] <= 24_000 + 8  # reduce_sum's axes


def test_a_tensor_that_is_read_again_keeps_its_memory():
  with tf.Graph().as_default():
    x = tf.matmul(tf.placeholder(tf.float32, [10, 10]), tf.ones([10, 10]))
    y = tf.exp(x)
    z = tf.matmul(y, x)
    step = types.SimpleNamespace(
        train_op=z.op, gradients=[],
        lowering=types.SimpleNamespace(
            tensors={}, graph=types.SimpleNamespace(operations=[])))
    with mock.patch.object(memory, "_kinds", lambda _: lambda op: "dispatch"):
      assert memory._worst_moment(step)["dispatch"] == 3 * 400


def test_memory_of_tokens_grows_with_the_batch():
  # In a straight line; relative positions are the same for any batch.
  four, eight, sixteen = (
      planned(f"batch_size = {size}").memory for size in (4, 8, 16))
  assert four.standing == eight.standing == sixteen.standing
  assert sixteen.of_tokens - eight.of_tokens == pytest.approx(
      2 * (eight.of_tokens - four.of_tokens), rel=.02)
  assert 1.5 < eight.of_tokens / four.of_tokens <= 2


def test_microbatches_need_memory_one_after_the_other(loops_of_t5):
  # 4 sequences at once, of 32 + 16 tokens, or 2 and 2. Tokens go to experts and
  # back in each part; the sums of gradients are communicated once.
  split = dict(mesh_shape="batch:2", layout="batch:batch,experts:batch")
  whole = planned(GROUP, **split)
  parts = planned(
      GROUP, "utils.serialize_num_microbatches."
      "tokens_per_microbatch_per_replica = 32", **split)
  assert (whole.configuration.num_microbatches,
          parts.configuration.num_microbatches) == (1, 2)
  assert parts.memory.of_tokens < .75 * whole.memory.of_tokens
  sent = {name: next(e for e in plan.communication if e["kind"] == "alltoall")
          for name, plan in (("whole", whole), ("parts", parts))}
  assert sent["parts"]["elements"] == sent["whole"]["elements"]
  assert sent["parts"]["count"] == 2 * sent["whole"]["count"]


def test_memory_is_that_of_runs():
  # `python -m benchmarks.planner` wrote it, on the machine that it names.
  with open(ROOT / "results/planning/memory.json") as f:
    found = json.load(f)
  assert len(found["sizes"]) == 5
  for name, size in found["sizes"].items():
    assert size["ratio"] == size["planned"]["peak"] / size["measured"]
    assert .85 <= size["ratio"] <= 1.15, name


def test_drops_of_random_routing():
  # 4 tokens, 2 experts, 2 slots: of 16 ways to route them 2 leave 2 tokens out
  # (all to one expert), 8 leave 1: (2 * 2 + 8 * 1) / (16 * 4).
  assert sizes.binomial_overflow(4, 2, 2) == pytest.approx(12 / 64)
  assert sizes.binomial_overflow(8, 1, 6) == 2 / 8
  draws = np.random.default_rng(0).integers(128, size=[400, 1024])
  over = sum(np.maximum(np.bincount(d) - 10, 0).sum() for d in draws)
  assert sizes.binomial_overflow(1024, 128, 10) == pytest.approx(
      over / draws.size, abs=1e-3)


def memory_of(**kinds):
  zero = dict(weights=0, optimizer_slots=0, gradients=0, activations=0,
              dispatch=0, masters=0)
  kinds = zero | kinds
  return memory.Memory(**kinds, peak=sum(kinds.values()) - kinds["masters"])


def test_largest_batch():
  # Of 100 bytes 40 are weights; 8 sequences on 2 processors take 20 a
  # processor, 5 each: 12 fit there, 24 on both.
  config = types.SimpleNamespace(
      mesh_shape=mtf.convert_to_shape("batch:2"), batch_size=8,
      num_microbatches=1,
      layout_rules=mtf.convert_to_layout_rules("batch:batch"))
  device = devices.Device("d", 100, None)
  advice = fit.advise(memory_of(weights=40, activations=20), config, device,
                      types.SimpleNamespace(all_variables=[]))
  assert advice == fit.Advice(fits=True, largest_batch=24, meshes=[])


def test_mesh_that_fits():
  # A weight of 64 bytes and 8 of tokens in 40: split over 2, 32 + 4 fit.
  config = types.SimpleNamespace(
      mesh_shape=mtf.convert_to_shape("batch:1"), batch_size=8,
      num_microbatches=1,
      layout_rules=mtf.convert_to_layout_rules("batch:batch,experts:batch"))
  variable = types.SimpleNamespace(
      shape=mtf.convert_to_shape("experts:4,d:4"), slice_dtype=tf.float32)
  advice = fit.advise(
      memory_of(weights=64, activations=8), config,
      devices.Device("d", 40, None),
      types.SimpleNamespace(all_variables=[variable]))
  assert advice == fit.Advice(
      fits=False, largest_batch=0, meshes=["batch:2"])


def test_fine_tuning_is_planned_without_its_checkpoint():
  plan = planned("utils.run.init_checkpoint = 'nowhere/model.ckpt-1'")
  assert plan.parameters == planned().parameters


def test_a_model_alone_is_planned_as_the_paper_trains_it():
  # 2^20 tokens a batch, inputs of 512 and targets of 114. On 2,048 cores each
  # has one sequence: its groups of 2,048 are cut to 512 and 114.
  config = configuration.resolve(
      ["gin/models/switch_c_e2048.gin"], mesh_shape="batch:2048")
  assert config.batch_size == 2048 and config.device == "tpu_v3"
  assert config.sequence_length == {"inputs": 512, "targets": 114}
  assert {stack: gin.query_parameter(f"{stack}/SwitchFFN.group_size")
          for stack in ("encoder", "decoder")} == {
              "encoder": 512, "decoder": 114}


def test_a_model_with_a_layout_is_planned_as_the_paper_trains_it():
  # 2,048 sequences on 2 replicas of 16 cores: 64 a core, computed 8 at a time,
  # in groups of 8 x 512 and 8 x 114 tokens.
  config = configuration.resolve(
      ["gin/models/switch_base_e16.gin",
       "gin/layouts/v3_32_expert_replicas.gin"])
  assert config.batch_size == 2048 and config.mesh_shape.size == 32
  assert config.num_microbatches == 8
  assert {stack: gin.query_parameter(f"{stack}/SwitchFFN.group_size")
          for stack in ("encoder", "decoder")} == {
              "encoder": 4096, "decoder": 912}


@pytest.mark.parametrize("page", ["docs/models.md", "docs/layouts.md"])
def test_commands_of_the_docs_are_runs(page):
  # The last of each page, up to the graph.
  text, = re.findall(r"^python run_t5.py --gin_file=gin/models/.*?(?=^```)",
                     (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
  arguments = shlex.split(text.replace("\\\n", " "))
  files, params = ([a.split("=", 1)[1] for a in arguments if a.startswith(flag)]
                   for flag in ("--gin_file=", "--gin_param="))
  config = configuration.resolve(files, params)
  assert config.mode == "train" and config.added is None


def test_mesh_that_fits_in_parts_of_a_batch():
  # As above, but 8 sequences in 2 parts of 4, of 8 bytes. On 2 processors each
  # has one part of 4: 32 + 8 do not fit in 39. On 4, 2 sequences: 16 + 4 do.
  config = types.SimpleNamespace(
      mesh_shape=mtf.convert_to_shape("batch:1"), batch_size=8,
      num_microbatches=2,
      layout_rules=mtf.convert_to_layout_rules("batch:batch,experts:batch"))
  variable = types.SimpleNamespace(
      shape=mtf.convert_to_shape("experts:4,d:4"), slice_dtype=tf.float32)
  advice = fit.advise(
      memory_of(weights=64, activations=8), config,
      devices.Device("d", 39, None),
      types.SimpleNamespace(all_variables=[variable]))
  assert advice.meshes == ["batch:4"]


def test_picture_shows_who_holds_what(tmp_path):
  # Figure 9, expert and model and data: 2 x 2 cores, each with an own slice of
  # the experts; tokens are the same along "model".
  plan = planned(GROUP, mesh_shape="model:2,batch:2",
                 layout="batch:batch,experts:batch,d_ff:model")
  impl = mtf.MeshImpl(plan.configuration.mesh_shape,
                      plan.configuration.layout_rules)
  shapes = picture._shapes(plan)
  assert picture.slices(impl, shapes["experts' weights"]).tolist() == [
      [0, 1], [2, 3]]
  assert picture.slices(impl, shapes["tokens"]).tolist() == [[0, 1], [0, 1]]
  path = tmp_path / "mesh.png"
  picture.draw(plan, str(path))
  assert path.read_bytes().startswith(b"\x89PNG")


def test_report_says_what_matters():
  text = report.text(planned())
  for line in (
      "20 steps of 4 sequences", "on 1 cpu core", "parameters",
      "capacity, encoder    5 slots", "communication: none",
      "fits: 4 sequences at once; at most"):
    assert line in text


def test_explanation_names_every_loss_and_what_is_written():
  plan = planned("train_then.phases = ['gin/runs/perplexity_eval.gin']")
  text = explain.text(plan, "runs/mine")
  for part in ("mode      train", "public_domain_span_corruption_1k",
               "4 sequences = 192 tokens", "20 steps, FewPassAdafactor",
               "load_balancing_loss 0.02: 2 layers of 0.01",
               "z-loss of the softmax 0.0001", "runs/mine: operative_config",
               "then gin/runs/perplexity_eval.gin", "experts 4 x d_model 16"):
    assert part in text, text
  # Warm-up to 0.02 over 5 of 20 steps, times (15 / 20) squared.
  rate = explain._learning_rates(
      plan.configuration.arguments["learning_rate_schedule"], 20)[0]
  assert f"{.02 * (10 / 20) ** 2:.3g} at 10" in rate
  assert rate.endswith("0 at 20")
  assert explain.comparison(plan, "runs/mine") is None


def test_what_does_not_divide_is_said():
  with pytest.raises(ValueError, match="num_experts must be divisible"):
    planned(mesh_shape="batch:3", layout="experts:batch")
  with pytest.raises(ValueError, match="mesh axis must divide the dimension"):
    planned(mesh_shape="model:5", layout="heads:model")


def test_device_must_be_known():
  with pytest.raises(ValueError, match="device=abacus. Set --device to one of"):
    devices.device("abacus")


def test_command_prints_json():
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.planning", f"--gin_file={TINY}",
       "--json"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  found = json.loads(done.stdout)
  assert {"parameters", "active_parameters_per_token", "flops_per_sequence",
          "memory_per_core", "communication_per_step"} <= set(found)
  assert math.isfinite(found["flops_per_sequence"])


def test_command_explains_a_mistake():
  done = subprocess.run(
      [sys.executable, "-m", "switch_mtf.planning", f"--gin_file={TINY}",
       "--mesh_shape=batch:3"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and "must" in done.stderr
