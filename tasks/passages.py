"""Cleans text, cuts it into passages and derives splits from names.

All functions are pure functions of strings, without files or TensorFlow.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping

# T5's C4 documents are about 2 kB long; ours are whole plays and speeches.
PASSAGE_CHARACTERS = 2000
VALIDATION_SHARE = 0.05

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ufeff]")
_SENTENCE_END = re.compile(r"(?<=[.!?;]) +|(?<=[.!?][\"'”’)]) +")


def clean(text: str) -> str:
  """Returns text with uniform line ends, single spaces and no indentation."""
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  text = re.sub(" +", " ", _CONTROL.sub(" ", text))
  text = "\n".join(line.strip() for line in text.split("\n"))
  return re.sub(r"\n{3,}", "\n\n", text).strip()


def reflow(text: str) -> str:
  """Joins the lines of each paragraph of clean, hard-wrapped prose."""
  return "\n\n".join(p.replace("\n", " ") for p in text.split("\n\n"))


def split_passages(text: str, size: int = PASSAGE_CHARACTERS) -> list[str]:
  """Cuts clean text into passages of at most `size` characters.

  Cuts are between paragraphs where possible, else between lines, sentences or,
  as a last resort, words; a word longer than `size` stays whole. Only white
  space at a cut is lost.

  Args:
    text: clean text, as returned by `clean`.
    size: maximum length of a passage, in characters.

  Returns:
    The passages, in order.
  """
  passages: list[str] = []
  current = ""
  for gap, unit in _units(text, size, ("\n\n", "\n", _SENTENCE_END, " ")):
    if current and len(current) + len(gap) + len(unit) > size:
      passages.append(current)
      current = unit
    else:
      current = current + gap + unit if current else unit
  return passages + [current] if current else passages


def _units(text: str, size: int, borders: tuple) -> Iterator[tuple[str, str]]:
  """Yields (white space before, piece); only a lone word may exceed `size`."""
  border, finer = borders[0], borders[1:]
  gap = border if isinstance(border, str) else " "
  parts = (text.split(border) if isinstance(border, str)
           else border.split(text))
  for part in parts:
    if len(part) <= size or not finer:
      yield gap, part
      continue
    for i, (finer_gap, unit) in enumerate(_units(part, size, finer)):
      yield (finer_gap if i else gap), unit


def stable_hash(name: str) -> int:
  """Returns 64 bits of the sha256, so the hash is the same on every machine."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def validation_names(
    sizes: Mapping[str, int], share: float = VALIDATION_SHARE) -> set[str]:
  """Chooses the documents of one source that are held out.

  Documents are taken in the order of their name's hash; a document that does
  not fit into `share` of the source's bytes is skipped. If none fits, the
  smallest one is taken, so that every source has a validation document.

  Args:
    sizes: size of each document in bytes, by name.
    share: fraction of the source's bytes to hold out.

  Returns:
    The names of the validation documents.
  """
  budget = share * sum(sizes.values())
  chosen: set[str] = set()
  for name in sorted(sizes, key=stable_hash):
    if sizes[name] <= budget:
      chosen.add(name)
      budget -= sizes[name]
  return chosen or {min(sizes, key=lambda n: (sizes[n], n))}


def split_of(name: str, share: float = VALIDATION_SHARE) -> str:
  """Returns the split of a document, for sources with many documents."""
  held_out = stable_hash(name) < share * 2**64
  return "validation" if held_out else "train"
