"""Measures training speed: ours, mesh_tensorflow's and Hugging Face's.

  python -m benchmarks.train_step

A step is forward, backward and Adafactor on 16 x (256 + 64) tokens. All
subjects send the same tokens to the same experts. A ratio is our tokens per
second over the rival's.
"""

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim, Group, Job
from benchmarks.spec import Spec

NAME = "train_step"
DENSE = 1
# Rival -> vocabulary -> smallest ratio of speeds that meets the target.
SPARSE_TARGETS = {"hugging_face": {512: 1.5, 32128: 1.5},
                  "upstream": {512: 1.6, 32128: 2.2}}
DENSE_TARGETS = {"hugging_face": 1.2}  # upstream's dense model is T5's own
GROWTH_TARGET = 1.35
SPARSE_TAX_TARGET = 1.08
SPARSE_TAX_EXPERTS, SPARSE_TAX_VOCABULARY = 32, 512
# The models differ only by a table of relative positions.
UPDATED_TOLERANCE = 0.01


def target(rival: str, experts: int, vocabulary: int) -> float | None:
  """Returns the target of our ratio to a rival; None if nothing is claimed."""
  if experts == DENSE:
    return DENSE_TARGETS.get(rival)
  return SPARSE_TARGETS[rival].get(vocabulary)


def check(group: Group, measurements: dict[str, dict[str, Any]]) -> None:
  """Checks that the subjects of a group did the same work.

  Args:
    group: measured group.
    measurements: measurements by label.

  Raises:
    ValueError: if an expert was idle, or if the subjects of a group with rivals
      updated different numbers of parameters.
  """
  for label, found in measurements.items():
    experts = found["spec"]["experts"]
    if experts > 1 and idle(found["facts"], experts):
      raise ValueError(
          f"{NAME}: every expert must get tokens, with group={group.name}, "
          f"subject={label}, experts={experts}, facts={found['facts']}. "
          "Correct how that subject's module in benchmarks/ spreads tokens.")
  if group.name.startswith("e"):
    _check_updates(group, measurements)


def idle(facts: dict[str, Any], experts: int) -> bool:
  """Returns whether an expert of some layer got no token or no update."""
  if "tokens_per_expert" in facts:
    return facts["tokens_per_expert"]["min"] <= 0
  if "updated_experts" in facts:
    return facts["updated_experts"]["min"] < experts
  # A task without an optimizer reports no updates, so nothing can be checked.
  return "updated_parameters" in facts


def _check_updates(
    group: Group, measurements: dict[str, dict[str, Any]]) -> None:
  """Checks that all subjects updated equally many parameters."""
  updated = {label: found["facts"]["updated_parameters"]
             for label, found in measurements.items()}
  if min(updated.values()) < max(updated.values()) * (1 - UPDATED_TOLERANCE):
    shown = ", ".join(f"{label}={n:,}" for label, n in updated.items())
    raise ValueError(
        f"{NAME}: the subjects must update equally many parameters, with "
        f"group={group.name}, {shown}. Correct the model that differs.")


def suite(
    experts: Sequence[int], vocabulary: Sequence[int], rivals: Sequence[str],
    **sizes: int,
) -> harness.Suite:
  """Builds the suite: what is measured and claimed.

  Args:
    experts: numbers of experts; 1 is the dense model.
    vocabulary: vocabulary sizes.
    rivals: subjects to compare ours with.
    **sizes: other fields of `Spec`.

  Returns:
    The suite.
  """
  groups, claims = [], []
  for v in vocabulary:
    for e in experts:
      name = f"e{e}/v{v}"
      groups.append(harness.rivals_group(
          name, rivals, task="train", experts=e, vocabulary=v, **sizes))
      claims += [
          Claim(f"{NAME}/{harness.SHORT[rival]}/{name}", name, "ours",
                harness.SHORT[rival], target=target(rival, e, v))
          for rival in rivals]
    if {8, 128} <= set(experts):
      growth = _growth(v, sizes)
      groups.append(growth)
      claims.append(Claim(
          f"{NAME}/{growth.name}", growth.name, "e128", "e8", "step_seconds",
          GROWTH_TARGET, at_most=True))
  if SPARSE_TAX_VOCABULARY in vocabulary and (
      {DENSE, SPARSE_TAX_EXPERTS} <= set(experts)):
    groups.append(_sparse_tax(sizes))
    claims.append(Claim(
        f"{NAME}/{groups[-1].name}", groups[-1].name, "sparse", "dense",
        "step_seconds", SPARSE_TAX_TARGET, at_most=True))
  return harness.Suite(NAME, tuple(groups), tuple(claims), check)


def _growth(vocabulary: int, sizes: dict[str, int]) -> Group:
  """Builds a group of 8 and 128 experts, with the same work per token."""
  return Group(f"growth/e8_to_e128/v{vocabulary}", tuple(
      Job(f"e{e}", Spec("ours", "train", experts=e, vocabulary=vocabulary,
                        **sizes))
      for e in (8, 128)))


def _sparse_tax(sizes: dict[str, int]) -> Group:
  """Builds a group of a sparse and a dense model with equally many operations.

  The capacity factor is 1, and there is no optimizer.
  """
  v = SPARSE_TAX_VOCABULARY
  return Group(f"sparse_tax/e{SPARSE_TAX_EXPERTS}/v{v}", tuple(
      Job(label, Spec("ours", "forward_backward", experts=e, vocabulary=v,
                      capacity_factor=1.0, **sizes))
      for label, e in (("sparse", SPARSE_TAX_EXPERTS), ("dense", DENSE))))


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  parser = harness.parser(
      NAME, experts=(DENSE, 8, 32, 128), vocabulary=(512, 32128),
      rivals=("upstream", "hugging_face"))
  harness.add_sizes(parser)
  options = parser.parse_args(arguments)
  harness.run(suite(
      options.experts, options.vocabulary, options.rivals,
      **harness.sizes(options)), options)


if __name__ == "__main__":
  main(sys.argv[1:])
