"""Trains the small vocabulary of the multilingual stand-in.

    python -m tasks.fetch stand_ins
    python -m tasks.stand_in_vocabulary

The vocabulary has 4,000 pieces for 100 languages in their scripts, and T5's ids
for padding, end of sequence and unknown. Rare characters are written as bytes,
so that no text holds an unknown piece.
"""

import os
import tempfile

from sentencepiece import sentencepiece_model_pb2

from tasks import train_vocabulary
from tasks.prepared import Passage
from tasks.stand_in_data import MULTILINGUAL, read_examples
from tasks.stand_ins import fetched_file
from tasks.vocabularies import MULTILINGUAL_MODEL

_WHITE_SPACE = ("9", "A", "D", "A0", "3000")  # code points


def training_lines(examples: dict[str, list[Passage]]) -> list[str]:
  """Returns the lines of the articles that are not held out."""
  return [line for split, articles in examples.items()
          if not split.endswith("validation")
          for article in articles for line in article.text.split("\n")]


def train(lines: list[str], num_pieces: int = 4000) -> bytes:
  """Returns a serialized model that knows every character, rare ones as bytes.

  The model has only the white-space rules of nmt_nfkc, because the data is
  already normalized; the whole table would grow the file from 60 kB to 300 kB.

  Args:
    lines: lines of text to train on.
    num_pieces: number of pieces, of which 256 are bytes.
  """
  with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
    rules.writelines(f"{space}\t20\n" for space in _WHITE_SPACE)
    rules.flush()
    model = sentencepiece_model_pb2.ModelProto.FromString(
        train_vocabulary.train(
            lines, num_pieces, byte_fallback=True, character_coverage=0.999,
            normalization_rule_tsv=rules.name))
  # The name of a temporary file would make equal models differ in bytes.
  model.normalizer_spec.ClearField("normalization_rule_tsv")
  return model.SerializeToString(deterministic=True)


def main() -> None:
  """Trains and writes the vocabulary."""
  lines = training_lines(read_examples(fetched_file(MULTILINGUAL), Passage))
  with open(MULTILINGUAL_MODEL, "wb") as f:
    f.write(train(lines))
  print(f"{MULTILINGUAL_MODEL}: {os.path.getsize(MULTILINGUAL_MODEL):,} bytes")


if __name__ == "__main__":
  main()
