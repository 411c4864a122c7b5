"""The vocabularies: T5's own, and small ones for runs on a CPU.

All have pad 0, end of sequence 1, unknown 2, and 100 sentinels at the end, the
first sentinel having the highest id.
"""

import os

import seqio

EXTRA_IDS = 100

_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
T5_MODEL = os.path.join(_DATA, "spiece.model")
MULTILINGUAL_MODEL = os.path.join(_DATA, "multilingual_4k.model")


def small_model(thousands: int) -> str:
  """Returns the path of the small vocabulary with that many thousand pieces."""
  return os.path.join(_DATA, f"public_domain_{thousands}k.model")


def vocabulary(model_file: str) -> seqio.SentencePieceVocabulary:
  """Returns a vocabulary with T5's sentinels; the file is read when needed."""
  return seqio.SentencePieceVocabulary(model_file, extra_ids=EXTRA_IDS)


T5 = vocabulary(T5_MODEL)
SMALL_1K = vocabulary(small_model(1))
SMALL_4K = vocabulary(small_model(4))
MULTILINGUAL_4K = vocabulary(MULTILINGUAL_MODEL)
