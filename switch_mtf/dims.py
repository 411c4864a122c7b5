"""The dimensions of a Switch layer: names, sizes, and which may be split.

  suffix  mtf name          one index selects                  split by
  O       outer_batch       a replica of the experts           outer_batch:...
  B       batch             a sequence                         batch:...
  L       length            a position                         never here
  M       d_model           a feature of a token               never here
  N       d_model           a feature of a result              never here
  G       batch             a group of tokens                  batch:...
  S       group             a token of the group               never
  E       experts           an expert                          experts:...
  C       expert_capacity   a slot of an expert                never
  X       expert_tokens     a slot of an expert, all groups    as G, or never
  F       d_ff              a hidden unit                      d_ff:...
  K       choices           a token's k-th expert              never

N equals M except in Switch attention. A tensor's name ends in its suffixes, in
the order of its axes: `probs_OGSE`. A dimension's mtf name is a sharding
statement, because layout rules match it: G is called "batch" so that T5's rule
`batch:batch` splits the groups. No module of `layers/` writes
`mtf.Dimension("...")`: dimensions are made here. Read `layers/switch_ffn.py`
next.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

import dataclasses
import itertools

import mesh_tensorflow as mtf

from switch_mtf.errors import either, legal_divisors
from switch_mtf.mesh import mesh_axis


def unsplit(dim: mtf.Dimension) -> mtf.Dimension:
  """Returns the partner of `dim` that no layout rule matches.

  A tensor may not carry two dimensions on one mesh axis, so the experts have
  this name before the all-to-all, and the groups after it.
  """
  return mtf.Dimension(dim.name + "_unsplit", dim.size)


def check_shape(
    tensor: mtf.Tensor, dims: list[mtf.Dimension], who: str
) -> None:
  """Raises ValueError unless `tensor` has exactly `dims`, in that order.

  Mesh-TF broadcasts by name, so a wrong mask would grow a tensor, not fail.
  """
  if tensor.shape.dims != list(dims):
    raise ValueError(
        f"{who}: the shape must be {mtf.Shape(dims)}, with "
        f"shape={tensor.shape}. Reshape or rename the argument.")


def expert_capacity(
    group_size: int, num_experts: int, factor: float, minimum: int
) -> int:
  """Returns the slots of one expert for the tokens of one group (equation 3).

  The number is truncated, not rounded, as in mesh_tensorflow. It is at least
  `minimum`, and at most the number of tokens of the group.
  """
  return min(group_size, max(minimum, int(group_size * factor / num_experts)))


@dataclasses.dataclass(frozen=True)
class MoeDims:
  """Sizes and names of the dimensions of one call of a Switch layer.

  Attributes:
    outer_batch_dim: O, of size 1 unless experts are replicated.
    num_groups_dim: G, groups of tokens on one replica of the experts.
    group_size_dim: S, tokens of a group.
    model_dim: M, features of a token.
    output_dim: N, features of a result.
    experts_dim: E, as the experts' weights carry it.
    capacity_dim: C, slots of an expert for one group.
    ff_dim: F, hidden units of an expert.
    choices_dim: K, experts that a token may choose.
    groups_stay: whether a group's slots stay on the processors that hold the
      group while the experts are applied. They do unless one mesh axis splits
      experts and groups; then an all-to-all moves the slots to their experts.
  """

  outer_batch_dim: mtf.Dimension
  num_groups_dim: mtf.Dimension
  group_size_dim: mtf.Dimension
  model_dim: mtf.Dimension
  output_dim: mtf.Dimension
  experts_dim: mtf.Dimension
  capacity_dim: mtf.Dimension
  ff_dim: mtf.Dimension
  choices_dim: mtf.Dimension
  groups_stay: bool = True

  @classmethod
  def create(
      cls,
      x_shape: mtf.Shape,
      *,
      num_experts: int,
      hidden_size: int,
      group_size: int,
      capacity_factor: float | None,
      min_capacity: int,
      num_choices: int = 1,
      output_size: int | None = None,
      keep_all: bool = False,
      layout: mtf.LayoutRules | str | None = None,
      mesh_shape: mtf.Shape | str | None = None,
      scope: str = "",
  ) -> "MoeDims":
    """Splits the tokens of `x` into groups and gives each expert its slots.

    Neither depends on the mesh: a layout never changes a result.

    Args:
      x_shape: [outer_batch?, batch, ..., d_model].
      num_experts: number of experts of the layer.
      hidden_size: hidden units of one expert.
      group_size: tokens of a group; a call with fewer tokens is one group.
      capacity_factor: slots over tokens; None drops no token.
      min_capacity: smallest number of slots of an expert.
      num_choices: number of experts that a token may use.
      output_size: features of a result; those of a token by default.
      keep_all: whether each expert has a slot for every token of a processor,
        whatever `group_size` and `capacity_factor` are.
      layout: layout rules of the run, None for one processor.
      mesh_shape: mesh of the run, None for one processor.
      scope: gin scope, such as "decoder", with which errors name a binding.

    Raises:
      ValueError: if tokens, groups or experts do not divide, or a rule is bad.
    """
    model_dim = x_shape.dims[-1]
    outer_batch_dim, batch_dim = _batch_dims(x_shape)
    tokens = x_shape.size // model_dim.size // outer_batch_dim.size
    experts_dim = mtf.Dimension("experts", num_experts)
    ways, groups_stay = _check_mesh(
        tokens, outer_batch_dim, batch_dim, experts_dim, layout, mesh_shape)
    if keep_all:
      group_size, capacity_factor = tokens // ways, None
    group_size = _fit_groups(tokens, group_size, ways, batch_dim, scope)
    capacity = group_size if capacity_factor is None else expert_capacity(
        group_size, num_experts, capacity_factor, min_capacity)
    return cls(
        outer_batch_dim=outer_batch_dim,
        num_groups_dim=mtf.Dimension(batch_dim.name, tokens // group_size),
        group_size_dim=mtf.Dimension("group", group_size),
        model_dim=model_dim,
        output_dim=_resized(model_dim, output_size),
        experts_dim=experts_dim,
        capacity_dim=mtf.Dimension("expert_capacity", capacity),
        ff_dim=mtf.Dimension("d_ff", hidden_size),
        choices_dim=mtf.Dimension("choices", num_choices),
        groups_stay=groups_stay)

  @property
  def experts_unsplit_dim(self) -> mtf.Dimension:
    """E while the groups are split; the experts are whole then."""
    return unsplit(self.experts_dim)

  @property
  def num_groups_at_experts_dim(self) -> mtf.Dimension:
    """G while the experts are split."""
    return (self.num_groups_dim if self.groups_stay
            else unsplit(self.num_groups_dim))

  @property
  def expert_tokens_dim(self) -> mtf.Dimension:
    """X, the slots of an expert over all groups; split as the groups are."""
    return mtf.Dimension(
        self.num_groups_dim.name if self.groups_stay else "expert_tokens",
        self.num_groups_dim.size * self.capacity_dim.size)

  @property
  def OG(self) -> list[mtf.Dimension]:  # noqa: N802
    """The dimensions over which groups are spread."""
    return [self.outer_batch_dim, self.num_groups_dim]

  @property
  def OGS(self) -> list[mtf.Dimension]:  # noqa: N802
    """One entry a token."""
    return [*self.OG, self.group_size_dim]

  @property
  def OGSM(self) -> list[mtf.Dimension]:  # noqa: N802
    """The tokens, grouped."""
    return [*self.OGS, self.model_dim]

  @property
  def OGSN(self) -> list[mtf.Dimension]:  # noqa: N802
    """The results, grouped."""
    return [*self.OGS, self.output_dim]

  @property
  def OGSE(self) -> list[mtf.Dimension]:  # noqa: N802
    """One entry a token and expert, the experts not split."""
    return [*self.OGS, self.experts_unsplit_dim]

  @property
  def OGSK(self) -> list[mtf.Dimension]:  # noqa: N802
    """One entry a choice."""
    return [*self.OGS, self.choices_dim]

  @property
  def OGSKM(self) -> list[mtf.Dimension]:  # noqa: N802
    """The token of each choice."""
    return [*self.OGSK, self.model_dim]

  @property
  def OGEC(self) -> list[mtf.Dimension]:  # noqa: N802
    """One entry a slot, the experts not split."""
    return [*self.OG, self.experts_unsplit_dim, self.capacity_dim]

  @property
  def EXM(self) -> list[mtf.Dimension]:  # noqa: N802
    """The experts' inputs; replicated experts keep O between E and X."""
    return [*self._slots_at_experts, self.model_dim]

  @property
  def EXN(self) -> list[mtf.Dimension]:  # noqa: N802
    """The experts' results."""
    return [*self._slots_at_experts, self.output_dim]

  @property
  def _slots_at_experts(self) -> list[mtf.Dimension]:
    replicas = [self.outer_batch_dim] if self.outer_batch_dim.size > 1 else []
    return [self.experts_dim, *replicas, self.expert_tokens_dim]


def heads_dim(num_heads: int) -> mtf.Dimension:
  """Returns T5's dimension of attention heads."""
  return mtf.Dimension("heads", num_heads)


def _batch_dims(x_shape: mtf.Shape) -> tuple[mtf.Dimension, mtf.Dimension]:
  """Returns O and B of a layer's input.

  An input without O, as in decoding, gets one of size 1 that is not split:
  every replica of the experts then computes the whole batch.
  """
  first = x_shape.dims[0]
  outer = first if first.name == "outer_batch" else unsplit(
      mtf.Dimension("outer_batch", 1))
  return outer, x_shape.get_dim_by_name("batch")


# Dimensions that no rule may split, because a processor needs all of them.
WHOLE_DIMS = ("d_model", "group", "expert_capacity", "choices")


def _check_layout(
    outer_batch_name: str,
    batch_name: str,
    layout: mtf.LayoutRules | str | None,
    mesh_shape: mtf.Shape | str | None,
) -> None:
  """Raises ValueError unless the layout rules can be followed."""
  if layout is None or mesh_shape is None:
    return
  axes = mtf.convert_to_shape(mesh_shape).dimension_names
  pairs = [(name, axis) for name, axis in
           mtf.convert_to_layout_rules(layout)._pairs if axis in axes]
  rules = dict(pairs)
  for name in rules:
    several = sorted({axis for other, axis in pairs if other == name})
    if len(several) > 1:
      raise ValueError(
          "SwitchFFN: each dimension must be split by one mesh axis, with "
          f"dimension={name}, axes={', '.join(several)}. Change "
          "utils.run.layout_rules.")
    if name in WHOLE_DIMS or name.endswith("_unsplit"):
      raise ValueError(
          f"SwitchFFN: layout rules must not split '{name}', with "
          f"rule={name}:{rules[name]}. Take {name} out of "
          "utils.run.layout_rules.")
  for one, other in itertools.combinations(
      (outer_batch_name, batch_name, "experts", "d_ff"), 2):
    shared = one in rules and rules.get(one) == rules.get(other)
    if shared and {one, other} != {batch_name, "experts"}:
      raise ValueError(
          "SwitchFFN: dimensions of one tensor must be split by different mesh "
          f"axes, with dimensions={one}, {other}, axis={rules[one]}. Change "
          "utils.run.layout_rules.")


def _resized(dim: mtf.Dimension, size: int | None) -> mtf.Dimension:
  """Returns a dimension with another size, if there is one."""
  return mtf.Dimension(dim.name, size or dim.size)


def _check_mesh(
    tokens: int, outer_batch_dim: mtf.Dimension, batch_dim: mtf.Dimension,
    experts_dim: mtf.Dimension,
    layout: mtf.LayoutRules | str | None, mesh_shape: mtf.Shape | str | None,
) -> tuple[int, bool]:
  """Returns into how many parts tokens are split, and whether groups stay.

  Raises:
    ValueError: if a layout rule cannot be followed, or unless each processor
      gets as many tokens and experts.
  """
  _check_layout(outer_batch_dim.name, batch_dim.name, layout, mesh_shape)
  batch_axis, batch_ways = mesh_axis(batch_dim, layout, mesh_shape)
  experts_axis, experts_ways = mesh_axis(experts_dim, layout, mesh_shape)
  _check_experts(experts_dim.size, experts_ways)
  _check_tokens(tokens, batch_ways, batch_dim.name)
  return batch_ways, experts_axis is None or experts_axis != batch_axis


def _check_experts(num_experts: int, ways: int) -> None:
  """Raises ValueError unless each processor gets the same number of experts."""
  if num_experts % ways:
    below = num_experts - num_experts % ways
    legal = [n for n in (below, below + ways) if n > 0]
    raise ValueError(
        "SwitchFFN: num_experts must be divisible by the mesh axis that splits "
        f"'experts', with num_experts={num_experts}, axis size={ways}. Set "
        f"SwitchFFN.num_experts to {either(legal)}, or change "
        "utils.run.mesh_shape.")


def _check_tokens(tokens: int, ways: int, batch_name: str) -> None:
  """Raises ValueError unless each processor gets the same number of tokens."""
  if tokens % ways:
    raise ValueError(
        f"SwitchFFN: the mesh axis that splits '{batch_name}' must divide the "
        f"tokens, with tokens={tokens}, axis size={ways}. Change "
        "utils.run.batch_size or utils.run.mesh_shape.")


def _fit_groups(
    tokens: int, group_size: int, ways: int, batch_dim: mtf.Dimension,
    scope: str,
) -> int:
  """Returns the size of a group: `group_size`, or all tokens if fewer.

  Raises:
    ValueError: unless the groups fill each processor exactly.
  """
  per_processor = tokens // ways
  fitted = min(group_size, tokens)
  if per_processor % fitted == 0:
    return fitted
  raise ValueError(
      "SwitchFFN: group_size must divide the tokens of each processor, with "
      f"tokens={tokens}, mesh axis '{batch_dim.name}'={ways}, "
      f"group_size={group_size}. Set {f'{scope}/' if scope else ''}"
      f"SwitchFFN.group_size to a divisor of {per_processor}, such as "
      f"{either(legal_divisors(per_processor, group_size))}.")
