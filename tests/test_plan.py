"""A plan: parameters, memory, what the layout splits."""

import json

import pytest
from helpers.plans import GROUP, planned

import tasks  # noqa: F401


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


def test_fine_tuning_is_planned_without_its_checkpoint():
  plan = planned("utils.run.init_checkpoint = 'nowhere/model.ckpt-1'")
  assert plan.parameters == planned().parameters


def test_what_does_not_divide_is_said():
  with pytest.raises(ValueError, match="num_experts must be divisible"):
    planned(mesh_shape="batch:3", layout="experts:batch")
  with pytest.raises(ValueError, match="mesh axis must divide the dimension"):
    planned(mesh_shape="model:5", layout="heads:model")
