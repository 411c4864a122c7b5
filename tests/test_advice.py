"""What the planner advises is planned, and fits."""

import dataclasses

import pytest
from helpers.plans import GROUP, TINY, planned

import tasks  # noqa: F401
from switch_mtf.planning import advice, devices, fit, report
from switch_mtf.planning import plan as plans


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


@pytest.fixture
def memory_of_each(monkeypatch):
  """Gives every processor a memory in bytes, and nothing beside the tensors."""
  def give(size):
    monkeypatch.setattr(
        devices, "device", lambda name: devices.Device(name, size, None))
  return give


def advised(*params, mesh_shape=None, files=(TINY,)):
  found = plans.plan(files, params, device="cpu", mesh_shape=mesh_shape)
  assert not found.advice.fits
  return advice.checked(found, files, params, mesh_shape)


def planned_with(flags, *params, mesh_shape=None):
  """The plan with a line of flags that was advised, as a user gives them."""
  import shlex
  given = {"gin_file": [TINY], "gin_param": list(params),
           "mesh_shape": [mesh_shape]}
  for flag in shlex.split(flags):
    name, _, value = flag.removeprefix("--").partition("=")
    given[name].append(value)
  mesh = None if len(given["gin_file"]) > 1 else given["mesh_shape"][-1]
  return plans.plan(given["gin_file"], given["gin_param"], device="cpu",
                    mesh_shape=mesh)


def test_microbatches_that_are_advised_fit(
    memory_of_each, loops_of_t5, capsys):
  # 24 sequences at once do not fit, 10 would by the estimate: 8 divide 24, and
  # groups of 16 divide their tokens.
  params = ("batch_size = 24",)
  whole = planned(*params)
  memory_of_each(whole.memory.standing + whole.memory.gradients
                 + whole.memory.of_tokens * 10 // 24)
  found = advised(*params)
  flags = found.advice.flags
  assert flags[0].startswith(
      '--gin_param="serialize_num_microbatches.'
      'tokens_per_microbatch_per_replica = ')
  for line in flags:
    assert planned_with(line, *params).advice.fits
    assert f"\n  {line}" in report.text(found)
  assert found.advice.largest_batch < 10 and (
      24 % found.advice.largest_batch == 0)
  assert found.as_dict()["flags_that_fit"] == flags
  assert "planning with " in capsys.readouterr().err


def test_a_layout_that_splits_weights_is_advised(memory_of_each, loops_of_t5):
  # Experts on both processors do not fit, half of them do.
  params = ("SwitchFFN.group_size = 8", "num_experts = 64", "d_ff = 256")
  data = "utils.run.layout_rules = 'batch:batch'"
  whole = planned(*params, data, mesh_shape="batch:2")
  split = planned(*params, files=(TINY, "gin/layouts/cpu_2_expert.gin"))
  assert split.memory.peak < 0.7 * whole.memory.peak
  memory_of_each(split.memory.peak + 1)
  found = advised(*params, files=(TINY, "gin/layouts/cpu_2_data.gin"))
  assert "--gin_file=gin/layouts/cpu_2_expert.gin" in found.advice.flags
  assert found.advice.planned <= advice.MOST_PLANNED


def test_a_change_names_groups_that_divide():
  # 3 sequences of 32 and of 16 tokens: 96 and 48, which 36 does not divide.
  capacity = plans.Capacity(4, 36, 9, 0.0)
  found = dataclasses.replace(
      planned(GROUP), capacity={"encoder": capacity, "decoder": capacity})
  assert advice._groups(found, 3) == (
      "encoder/SwitchFFN.group_size = 32", "decoder/SwitchFFN.group_size = 24")
  assert advice._groups(found, 9) == ()


def test_runs_that_are_planned_are_few(monkeypatch):
  found = planned(GROUP)
  calls = []

  def nothing_fits(paths, params, **unused):
    calls.append(params)
    return dataclasses.replace(found, advice=fit.Advice(False, 3, []))

  monkeypatch.setattr(advice, "plan", nothing_fits)
  tried = dataclasses.replace(found, advice=fit.Advice(
      False, 3, [f"batch:{2**n}" for n in range(1, 9)]))
  result = advice.checked(tried, [TINY], [GROUP], None)
  assert result.advice.flags == [] and result.advice.meshes == []
  assert len(calls) == result.advice.planned == advice.MOST_PLANNED
  assert "none of 6 similar runs fits" in report.text(result)


def test_a_run_that_fits_gets_no_advice():
  found = planned(GROUP)
  assert advice.checked(found, [TINY], [GROUP], None) is found
