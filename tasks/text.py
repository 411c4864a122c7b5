"""The data set public_domain_text: the text that comes with the repository.

`data/public_domain.jsonl.xz` holds whole documents with their splits. The data
set holds passages of about 2 kB, the size of T5's own pre-training documents.
"""

import collections
import functools
import json
import lzma
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks import passages
from tasks.prepared import Passage, PreparedSource, cache_dir, prepare

NAME = "public_domain_text"
VERSION = "1.0.0"
SOURCES = ("state_of_the_union", "shakespeare", "milton", "moby_dick")
BUNDLED_TEXT = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "data",
    "public_domain.jsonl.xz")


class Document(NamedTuple):
  """A whole document of a corpus.

  Attributes:
    text: clean text.
    source: name of one of the corpus' sources.
    name: name of the document within the source.
    split: "train" or "validation"; empty while not yet chosen.
    domain: a finer label within the source, such as a genre.
  """

  text: str
  source: str
  name: str
  split: str = ""
  domain: str = ""


def read_documents(path: str = BUNDLED_TEXT) -> Iterator[Document]:
  """Yields the documents of a JSON-lines file, compressed or not."""
  open_file = lzma.open if path.endswith(".xz") else open
  with open_file(path, "rt", encoding="utf-8") as f:
    for line in f:
      fields = json.loads(line)
      yield Document(fields["text"], fields["source"], fields["document"],
                     fields["split"], fields.get("domain", ""))


def encode(documents: Iterable[Document]) -> bytes:
  """Returns documents as the JSON lines that `read_documents` reads."""
  lines = []
  for d in documents:
    fields = {"source": d.source, "domain": d.domain, "document": d.name,
              "split": d.split, "text": d.text}
    if not d.domain:
      del fields["domain"]
    lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
  return "".join(lines).encode()


def passages_by_split(
    documents: Iterable[Document]) -> dict[str, list[Passage]]:
  """Cuts documents into the examples of a data set."""
  by_split = collections.defaultdict(list)
  for d in documents:
    for i, text in enumerate(passages.split_passages(d.text)):
      by_split[d.split].append(
          Passage(f"{d.source}/{d.name}/{i}", text, d.source, d.name))
  return by_split


def public_domain_dir() -> str:
  """Prepares public_domain_text if necessary and returns its data directory."""
  return prepare(NAME, VERSION, lambda: passages_by_split(read_documents()),
                 os.path.join(cache_dir(), "tfds"))


public_domain_text = functools.partial(
    PreparedSource, f"{NAME}:{VERSION}", public_domain_dir)
