"""How much memory a process holds at its peak, training and decoding.

  python -m benchmarks.memory

Each subject in a process of its own, alone; libraries, building and warm-up
count. A ratio is our peak over the other's: less is better.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.harness import Claim

NAME = "memory"
TARGET = 1.0  # against Hugging Face
DECODE_BATCH = 8
DECODE_TOKENS = 64


def suite(
    experts: Sequence[int], vocabulary: Sequence[int], rivals: Sequence[str],
    **sizes: int,
) -> harness.Suite:
  """What is measured and claimed.

  Args:
    experts: 1 is the dense model.
    vocabulary: sizes of it.
    rivals: against whom.
    **sizes: other fields of `Spec`, for training.

  Returns:
    The suite.
  """
  decode_sizes = dict(
      batch=DECODE_BATCH, inputs=DECODE_TOKENS, targets=DECODE_TOKENS)
  groups, claims = [], []
  for task, chosen in (("train", sizes), ("decode", decode_sizes)):
    for v in vocabulary:
      for e in experts:
        name = f"{task}/e{e}/v{v}"
        groups.append(harness.rivals_group(
            name, rivals, apart=True, task=task, experts=e, vocabulary=v,
            **chosen))
        claims += [_claim(name, rival) for rival in rivals]
  return harness.Suite(NAME, tuple(groups), tuple(claims))


def _claim(group: str, rival: str) -> Claim:
  short = harness.SHORT[rival]
  if rival == "hugging_face":
    return Claim(f"{NAME}/{group}", group, "ours", short, "peak_rss_mb", TARGET,
                 at_most=True)
  return Claim(f"{NAME}/{short}/{group}", group, "ours", short, "peak_rss_mb",
               at_most=True)


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: of the command line.
  """
  parser = harness.parser(
      NAME, experts=(8, 32, 128), vocabulary=(512, 32128),
      rivals=("hugging_face", "upstream"), alternations=2)
  harness.add_sizes(parser)
  options = parser.parse_args(arguments)
  harness.run(suite(
      options.experts, options.vocabulary, options.rivals,
      **harness.sizes(options)), options)


if __name__ == "__main__":
  main(sys.argv[1:])
