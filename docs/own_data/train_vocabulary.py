"""Trains a sentencepiece vocabulary with the ids of T5.

    python docs/own_data/train_vocabulary.py my.txt my 4000

reads my.txt and writes my.model (and my.vocab, which nothing reads).
"""

import sys

import sentencepiece


def main() -> None:
  """Trains the vocabulary that the command line describes."""
  text, prefix, size = sys.argv[1:]
  sentencepiece.SentencePieceTrainer.train(
      input=text, model_prefix=prefix, vocab_size=int(size),
      hard_vocab_limit=False,  # a small text may have fewer pieces
      pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)


if __name__ == "__main__":
  main()
