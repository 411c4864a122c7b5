"""Measures the cost of one Switch layer by group size and number of experts.

  python -m benchmarks.layer

A feed-forward layer runs alone, forward and backward, on 16,384 tokens. It
takes turns with a dense layer of as many operations per token. A ratio is a
time over that of the reference sizes or of the dense layer; it should not
depend on the sizes.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.harness import Claim, Group, Job
from benchmarks.spec import Spec

NAME = "layer"
GROUP_SIZES = (256, 1024, 4096, 16384)
EXPERTS = (2, 8, 32, 128, 512)
CAPACITY_FACTORS = (1.0, 1.25)
# Reference sizes: used when the other size varies, and the base of ratios.
GROUP_SIZE, NUM_EXPERTS = 4096, 32
FLAT = 1.1
CLAIMED_EXPERTS = 128  # the cost should be flat up to this number


def suite(
    experts: Sequence[int], group_sizes: Sequence[int], batch: int, inputs: int
) -> harness.Suite:
  """Builds the suite: what is measured and claimed.

  Args:
    experts: numbers of experts.
    group_sizes: numbers of tokens that compete for slots.
    batch: sequences per batch.
    inputs: tokens per sequence.

  Returns:
    The suite.
  """
  groups, claims = [], []
  for factor in CAPACITY_FACTORS:
    def job(label, e, size, factor=factor):
      return Job(label, Spec(
          "ours", "layer", experts=e, batch=batch, inputs=inputs, targets=0,
          capacity_factor=factor, group_size=size))

    for what, jobs, reference in (
        ("experts", [job(f"e{e}", e, GROUP_SIZE) for e in experts],
         f"e{NUM_EXPERTS}"),
        ("groups", [job(f"s{s}", NUM_EXPERTS, s) for s in group_sizes],
         f"s{GROUP_SIZE}")):
      name = f"{what}/c{factor:g}"
      groups.append(Group(name, (*jobs, job("dense", 1, GROUP_SIZE))))
      claims += [
          Claim(f"{NAME}/{name}/{one.label}_to_{other}", name, one.label, other,
                "step_seconds", target, at_most=True)
          for one in jobs for other, target in (
              (reference, _target(one)), ("dense", None))
          if one.label != other]
  return harness.Suite(NAME, tuple(groups), tuple(claims))


def _target(job: Job) -> float | None:
  """Returns the upper bound of a job's ratio; None above `CLAIMED_EXPERTS`."""
  return FLAT if job.spec.experts <= CLAIMED_EXPERTS else None


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  parser = harness.parser(NAME, experts=EXPERTS)
  parser.add_argument(
      "--group_sizes", type=int, nargs="+", default=list(GROUP_SIZES))
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--inputs", type=int, default=256)
  options = parser.parse_args(arguments)
  harness.run(suite(options.experts, options.group_sizes, options.batch,
                    options.inputs), options)


if __name__ == "__main__":
  main(sys.argv[1:])
