"""What one Switch layer costs, over groups and over experts.

  python -m benchmarks.layer

One feed-forward layer alone, forward and backward, on 16,384 tokens; the dense
layer of the same operations a token takes turns with it. A ratio is a time over
that of the reference, and should stay the same.
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
# Of the sizes that are not varied, and what the others are compared with.
GROUP_SIZE, NUM_EXPERTS = 4096, 32
FLAT = 1.1
CLAIMED_EXPERTS = 128  # up to which it should be flat


def suite(
    experts: Sequence[int], group_sizes: Sequence[int], batch: int, inputs: int
) -> harness.Suite:
  """What is measured and claimed.

  Args:
    experts: of the layer.
    group_sizes: tokens that compete for slots.
    batch: sequences.
    inputs: tokens of a sequence.

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
  return FLAT if job.spec.experts <= CLAIMED_EXPERTS else None


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: of the command line.
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
