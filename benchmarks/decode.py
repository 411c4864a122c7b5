"""Measures the speed of greedy decoding: ours against Hugging Face's.

  python -m benchmarks.decode

Both cache keys and values, read 64 tokens and write exactly 64. A ratio is our
tokens per second over theirs.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.harness import Claim, Group, Job
from benchmarks.spec import Spec

NAME = "decode"
TOKENS = 64
# Batch -> smallest ratio of our speed to Hugging Face's that meets the target.
TARGETS = {1: 2.0, 8: 2.0}
GROWTH_TARGET = 1.1


def suite(
    batches: Sequence[int], experts: Sequence[int], vocabulary: Sequence[int],
    rivals: Sequence[str], inputs: int = TOKENS, targets: int = TOKENS,
) -> harness.Suite:
  """Builds the suite: what is measured and claimed.

  Args:
    batches: batch sizes to measure.
    experts: numbers of experts of each sparse layer.
    vocabulary: vocabulary sizes.
    rivals: subjects to compare ours with.
    inputs: tokens per input.
    targets: tokens to write.

  Returns:
    The suite.
  """
  groups, claims = [], []
  for v in vocabulary:
    for b in batches:
      def spec(subject, e, v=v, b=b):
        return Spec(subject, "decode", experts=e, vocabulary=v, batch=b,
                    inputs=inputs, targets=targets)

      end = "" if len(vocabulary) == 1 else f"/v{v}"
      for e in experts:
        name = f"b{b}/e{e}{end}"
        groups.append(Group(name, tuple(
            Job(harness.SHORT[subject], spec(subject, e))
            for subject in ("ours", *rivals))))
        claims += [
            Claim(f"{NAME}/{harness.SHORT[rival]}/{name}", name, "ours",
                  harness.SHORT[rival],
                  target=TARGETS.get(b) if rival == "hugging_face" else None)
            for rival in rivals]
      if {8, 128} <= set(experts):
        name = f"growth/b{b}/e8_to_e128{end}"
        groups.append(Group(name, tuple(
            Job(f"e{e}", spec("ours", e)) for e in (8, 128))))
        claims.append(Claim(
            f"{NAME}/{name}", name, "e128", "e8", "step_seconds",
            GROWTH_TARGET, at_most=True))
  return harness.Suite(NAME, tuple(groups), tuple(claims))


def main(arguments: Sequence[str]) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments.
  """
  parser = harness.parser(
      NAME, experts=(8, 32, 128), vocabulary=(32128,),
      rivals=("hugging_face", "upstream"))
  parser.set_defaults(rivals=["hugging_face"])
  parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
  parser.add_argument("--inputs", type=int, default=TOKENS)
  parser.add_argument("--targets", type=int, default=TOKENS)
  options = parser.parse_args(arguments)
  harness.run(suite(
      options.batches, options.experts, options.vocabulary, options.rivals,
      options.inputs, options.targets), options)


if __name__ == "__main__":
  main(sys.argv[1:])
