"""Dimensions of a Switch layer: sizes, names, every error."""

import dataclasses

import mesh_tensorflow as mtf
import pytest

from switch_mtf.dims import (
  MoeDims,
  check_shape,
  expert_capacity,
  unsplit,
)

# 8 sequences of 12 tokens: 96 tokens.
SHAPE = "batch:8,length:12,d_model:16"
OUTER = "outer_batch:2,batch:4,length:12,d_model:16"  # 48 tokens a replica


def create(shape=SHAPE, **changed):
  arguments = dict(num_experts=4, hidden_size=32, group_size=24,
                   capacity_factor=1.25, min_capacity=4)
  arguments.update(changed)
  return MoeDims.create(mtf.convert_to_shape(shape), **arguments)


@pytest.mark.parametrize("group, experts, factor, minimum, slots", [
    # Equation 3: (tokens / experts) * factor.
    (1024, 128, 1.25, 4, 10),  # 1024 / 128 = 8, * 1.25 = 10
    (1024, 256, 1.25, 4, 5),  # 4 * 1.25 = 5
    (6, 3, 1.0, 1, 2),  # Figure 3 of the paper: 2 slots
    (6, 3, 1.5, 1, 3),  # Figure 3 of the paper: 3 slots
    (100, 8, 1.25, 1, 15),  # 12.5 * 1.25 = 15.625, cut off
    (1024, 2048, 1.25, 4, 4),  # 0.625, cut off to 0: the minimum, 4
    (1024, 2048, 1.25, 1, 1),  # the same with a minimum of 1
    (3, 8, 1.0, 4, 3),  # the minimum is 4, but there are 3 tokens
    (8, 2, 4.0, 1, 8),  # 4 * 4 = 16, but there are 8 tokens
    (8, 1, 1.0, 1, 8),  # one expert: all
])
def test_expert_capacity(group, experts, factor, minimum, slots):
  assert expert_capacity(group, experts, factor, minimum) == slots


def test_sizes():
  # 96 tokens / 24 = 4 groups; 24 / 4 experts * 1.25 = 7.5, cut off to 7 slots.
  dims = create()
  expected = dict(outer_batch_dim=("outer_batch_unsplit", 1),
                  num_groups_dim=("batch", 4), group_size_dim=("group", 24),
                  model_dim=("d_model", 16), output_dim=("d_model", 16),
                  experts_dim=("experts", 4),
                  capacity_dim=("expert_capacity", 7), ff_dim=("d_ff", 32),
                  choices_dim=("choices", 1))
  found = {k: (d.name, d.size) for k, d in vars(dims).items()
           if isinstance(d, mtf.Dimension)}
  assert found == expected
  assert dims.expert_tokens_dim.size == 4 * 7


def test_axes_in_the_order_of_the_suffix():
  # The letters are the table in dims.py.
  together = dict(mesh_shape="a:2", layout="batch:a;experts:a")
  dims = create(num_choices=2, **together)

  def names(shape):
    return [d.name for d in shape]

  assert names(dims.OGS) == ["outer_batch_unsplit", "batch", "group"]
  assert names(dims.OGSM) == [*names(dims.OGS), "d_model"]
  assert names(dims.OGSE) == [*names(dims.OGS), "experts_unsplit"]
  assert names(dims.OGSK) == [*names(dims.OGS), "choices"]
  assert names(dims.OGEC) == [
      "outer_batch_unsplit", "batch", "experts_unsplit", "expert_capacity"]
  assert names(dims.EXM) == ["experts", "expert_tokens", "d_model"]
  assert names(create(OUTER, **together).EXM) == [
      "experts", "outer_batch", "expert_tokens", "d_model"]


def test_unsplit_partners_keep_the_size_and_match_no_rule():
  dims = create(mesh_shape="a:2", layout="batch:a;experts:a")
  assert dims.experts_unsplit_dim == mtf.Dimension("experts_unsplit", 4)
  assert dims.num_groups_at_experts_dim == mtf.Dimension("batch_unsplit", 4)
  assert unsplit(dims.ff_dim) == mtf.Dimension("d_ff_unsplit", 32)


@pytest.mark.parametrize("layout", [
    "", "batch:a", "experts:a", "batch:a;experts:b", "batch:b;d_ff:a"])
def test_groups_stay_unless_experts_share_their_mesh_axis(layout):
  # Nothing need move then, and the slots of an expert are split as groups are.
  dims = create(mesh_shape="a:2;b:2", layout=layout)
  assert dims.num_groups_at_experts_dim == dims.num_groups_dim
  assert dims.expert_tokens_dim.name == "batch"


def test_tokens_are_counted_for_one_replica_of_the_experts():
  # 2 * 4 * 12 = 96 tokens, 48 for each of the two replicas: 2 groups of 24.
  dims = create(OUTER)
  assert dims.outer_batch_dim.size == 2
  assert dims.num_groups_dim.size == 2
  assert dims.group_size_dim.size == 24


def test_fewer_tokens_than_a_group_are_one_group():
  # 96 tokens, groups of 1024: 1 group of 96; 96 / 4 * 1.25 = 30 slots.
  dims = create(group_size=1024)
  assert dims.num_groups_dim.size == 1
  assert dims.group_size_dim.size == 96
  assert dims.capacity_dim.size == 30


@pytest.mark.parametrize("length", ["length", "beam", "memory_length"])
def test_any_dimension_between_batch_and_model_is_tokens(length):
  assert create(f"batch:8,{length}:12,d_model:16") == create()


LAYOUTS = [
    ("all:1", "batch:all"), ("a:4", "batch:a"), ("a:4", "experts:a"),
    ("a:4", "d_ff:a"), ("a:4", "batch:a;experts:a"),
    ("a:2;b:2", "batch:a;experts:a;d_ff:b"), ("a:2;b:2", "batch:a;experts:b"),
    ("a:4;b:1", "batch:a;experts:a;d_ff:b"),
]


@pytest.mark.parametrize("mesh_shape, layout", LAYOUTS)
@pytest.mark.parametrize("group_size", [6, 12, 24])
def test_layout_changes_nothing(mesh_shape, layout, group_size):
  # "A layout never changes a result" (CONTRIBUTING.md).
  laid_out = create(group_size=group_size, mesh_shape=mesh_shape, layout=layout)
  plain = create(group_size=group_size)
  # Which way the slots go depends on the layout; how many there are does not.
  assert dataclasses.replace(laid_out, groups_stay=True) == plain


@pytest.mark.parametrize("mesh_shape, layout", [("", ""), *LAYOUTS])
@pytest.mark.parametrize("experts", [1, 4, 64])
def test_decoding_drops_nothing(mesh_shape, layout, experts):
  # Even if all tokens of a group choose one expert, it has a slot for each.
  if experts == 1:
    layout = ";".join(r for r in layout.split(";") if "experts" not in r)
  dims = create("batch:8,d_model:16", num_experts=experts, capacity_factor=0.1,
                min_capacity=1, keep_all=True, mesh_shape=mesh_shape,
                layout=layout)
  assert dims.capacity_dim.size == dims.group_size_dim.size
  assert dims.num_groups_dim.size * dims.group_size_dim.size == 8


def message(**changed):
  with pytest.raises(ValueError) as error:
    create(**changed)
  return str(error.value)


def test_group_size_must_divide():
  # 96 % 20 = 16. Nearest divisors of 96 to 20: 16 and 24 (4 away), 12 (8), then
  # 32 (12); 8 is also 12 away, and the smaller comes first.
  assert message(group_size=20) == (
      "SwitchFFN: group_size must divide the tokens of each processor, with "
      "tokens=96, mesh axis 'batch'=1, group_size=20. Set "
      "SwitchFFN.group_size to a divisor of 96, such as 8, 12, 16 or 24.")


def test_group_size_must_divide_a_processors_tokens():
  # 96 / 4 = 24 tokens a processor, 48 do not fit. The largest divisors of 24:
  # 6, 8, 12 and 24.
  assert message(group_size=48, mesh_shape="a:4", layout="batch:a") == (
      "SwitchFFN: group_size must divide the tokens of each processor, with "
      "tokens=96, mesh axis 'batch'=4, group_size=48. Set "
      "SwitchFFN.group_size to a divisor of 24, such as 6, 8, 12 or 24.")


def test_group_size_in_the_message_is_the_users():
  # 8 tokens, 2 a processor: a group of 1024 would be one of 8.
  assert "group_size=1024" in message(
      shape="batch:4,length:2,d_model:6", group_size=1024, mesh_shape="a:4",
      layout="batch:a")


@pytest.mark.parametrize("batch", [6, 2])
def test_decoding_must_divide_as_well(batch):
  assert f"with tokens={batch}, axis size=4" in message(
      shape=f"batch:{batch},d_model:6", keep_all=True, mesh_shape="a:4",
      layout="batch:a")


def test_experts_must_divide():
  # 6 = 4 + 2: the multiples of 4 around 6 are 4 and 8.
  assert message(num_experts=6, mesh_shape="a:4", layout="experts:a") == (
      "SwitchFFN: num_experts must be divisible by the mesh axis that splits "
      "'experts', with num_experts=6, axis size=4. Set SwitchFFN.num_experts "
      "to 4 or 8, or change utils.run.mesh_shape.")


def test_fewer_experts_than_processors():
  # Below 3 there is only 0, which is no number of experts.
  assert "Set SwitchFFN.num_experts to 4, or" in message(
      num_experts=3, mesh_shape="a:4", layout="experts:a")


def test_batch_axis_must_divide_the_tokens():
  # 96 % 5 = 1.
  assert message(mesh_shape="a:5", layout="batch:a") == (
      "SwitchFFN: the mesh axis that splits 'batch' must divide the tokens, "
      "with tokens=96, axis size=5. Change utils.run.batch_size or "
      "utils.run.mesh_shape.")


def test_check_shape(new_mesh):
  dims = create()
  x = mtf.zeros(new_mesh(), dims.OGS)
  check_shape(x, dims.OGS, "test x")
  swapped = [dims.OGS[0], dims.OGS[2], dims.OGS[1]]
  with pytest.raises(ValueError, match="^test x: the shape must be .*batch"):
    check_shape(x, swapped, "test x")
  with pytest.raises(ValueError, match="^test x: .* with shape=.*group"):
    check_shape(x, dims.OGSM, "test x")


def test_dims_are_a_value():
  assert create() == create()
  with pytest.raises(dataclasses.FrozenInstanceError):
    create().capacity_dim = mtf.Dimension("expert_capacity", 1)
