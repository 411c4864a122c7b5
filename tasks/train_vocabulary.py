"""Trains the small vocabularies on the bundled text's training split.

    python -m tasks.train_vocabulary

On a CPU, the softmax over T5's 32,128 pieces costs more than a small model's
layers. The small vocabularies have 1,000 and 4,000 pieces, and T5's ids for
padding, end of sequence and unknown.
"""

import io
import os
import sys
from typing import Any

import sentencepiece

from tasks.text import BUNDLED_TEXT, read_documents
from tasks.vocabularies import small_model

THOUSANDS = (1, 4)


def train(sentences: list[str], num_pieces: int, **options: Any) -> bytes:
  """Returns a serialized unigram model with T5's special ids.

  Args:
    sentences: lines of text; the same lines in the same order give the same
      bytes.
    num_pieces: number of pieces, including the three special ones.
    **options: options of sentencepiece that replace those for English.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=model,
      vocab_size=num_pieces,
      model_type="unigram",
      **{"character_coverage": 0.99999,
         "normalization_rule_name": "nmt_nfkc"} | options,
      max_sentence_length=1 << 20,
      pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
      pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
      num_threads=1,
      minloglevel=1)
  return model.getvalue()


def training_lines(path: str = BUNDLED_TEXT) -> list[str]:
  """Returns the lines of the documents that are not held out."""
  return [line for d in read_documents(path) if d.split == "train"
          for line in d.text.split("\n") if line]


def main() -> None:
  """Trains and writes both vocabularies."""
  if sys.argv[1:]:
    sys.exit("train_vocabulary: there must be no argument, with argument="
             f"{sys.argv[1]}. It writes the bundled vocabularies; one of your "
             "own is in docs/your_own_data.md.")
  lines = training_lines()
  for thousands in THOUSANDS:
    path = small_model(thousands)
    model = train(lines, 1000 * thousands)  # before the file is opened
    with open(path, "wb") as f:
      f.write(model)
    print(f"{path}: {os.path.getsize(path):,} bytes")


if __name__ == "__main__":
  main()
