"""Text: passages, splits, preparation, and files that cannot be used."""

import collections
import hashlib
import json
import lzma
import os
import re
import signal

import gin
import pytest
import seqio
import tensorflow_datasets as tfds

from tasks import build_bundled_text, fetch, local_text, packages, passages
from tasks.prepared import Passage, cache_dir, prepare
from tasks.text import (
    BUNDLED_TEXT,
    SOURCES,
    Document,
    encode,
    passages_by_split,
    public_domain_text,
    read_documents,
)

LENGTHS = {"inputs": 32, "targets": 16}
PINNED_SPLIT = (
    "fa5f50dea0c3f3039a148f5063465c6e9991037a458e4aa33f925311ca9516da")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Gives each test an empty cache directory and no gin bindings."""
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path / "cache"))
  yield tmp_path / "cache"
  gin.clear_config()


def two_passages():
  return {"train": [Passage("a", "Call me Ishmael.", "s", "d")],
          "validation": [Passage("b", "All this happened.", "s", "e")]}


def first_inputs(name):
  """The inputs of a task's first example, as text."""
  task = seqio.TaskRegistry.get(name)
  ds = task.get_dataset(LENGTHS, "train", seed=0)
  example, = tfds.as_numpy(ds.take(1))
  return task.output_features["inputs"].vocabulary.decode(
      example["inputs"].tolist())


# Strings.


def test_clean_makes_lines_and_spaces_uniform():
  assert passages.clean("\ufeff a\tb \r\n\r\n\r\n\r\n  c\x02d\r") == (
      "a b\n\nc d")


def test_reflow_joins_the_lines_of_paragraphs():
  assert passages.reflow("a\nb\n\nc") == "a b\n\nc"


@pytest.mark.parametrize("raw, expected", [
    # Two paragraphs fit; the third begins a passage.
    ("aa\n\nbb\n\ncccc", ["aa\n\nbb", "cccc"]),
    # A long paragraph is cut between lines, then sentences, then words.
    ("aaaa\nbbbb\ncc", ["aaaa", "bbbb\ncc"]),
    ("Aaa. Bbb. Cc.", ["Aaa.", "Bbb. Cc."]),
    ("aaaa bbbb ccc", ["aaaa", "bbbb ccc"]),
    # A word is never cut.
    ("a bbbbbbbbbbbb c", ["a", "bbbbbbbbbbbb", "c"]),
])
def test_passages_are_cut_at_the_coarsest_border(raw, expected):
  assert passages.split_passages(raw, size=8) == expected


def test_passages_hold_the_whole_text_in_order():
  sizes = []
  for d in read_documents():
    cut = passages.split_passages(d.text)
    assert re.sub(r"\s", "", "".join(cut)) == re.sub(r"\s", "", d.text)
    sizes += map(len, cut)
  assert max(sizes) <= passages.PASSAGE_CHARACTERS
  assert sorted(sizes)[len(sizes) // 2] > 1500


def test_validation_names_fit_the_share():
  sizes = {f"d{i}": 10 for i in range(100)}
  assert len(passages.validation_names(sizes)) == 5
  # None fits 5 % of 30 bytes: the smallest.
  assert passages.validation_names({"a": 20, "b": 10}) == {"b"}


# The bundled text.


def test_bundled_text_is_the_built_one():
  with lzma.open(BUNDLED_TEXT) as f:
    found = hashlib.sha256(f.read()).hexdigest()
  assert found == build_bundled_text.TEXT_SHA256


def test_split_of_the_bundled_text_is_fixed():
  documents = list(read_documents())
  assert build_bundled_text.with_splits(documents) == documents
  names = {split: {f"{d.source}/{d.name}" for d in documents
                   if d.split == split} for split in ("train", "validation")}
  assert not names["train"] & names["validation"]
  assert len(names["train"]) + len(names["validation"]) == len(documents)
  listed = "\n".join(sorted(names["validation"])).encode()
  assert hashlib.sha256(listed).hexdigest() == PINNED_SPLIT


def test_every_source_holds_out_about_five_per_cent():
  sizes = collections.Counter()
  for d in read_documents():
    sizes[d.source, d.split] += len(d.text.encode())
  assert {source for source, _ in sizes} == set(SOURCES)
  for source in SOURCES:
    held_out = sizes[source, "validation"]
    share = held_out / (held_out + sizes[source, "train"])
    assert 0.03 < share <= 0.05, source


def test_bundled_text_has_no_licence_boilerplate():
  for d in read_documents():
    assert "Gutenberg" not in d.text, d.name


def test_no_passage_is_in_both_splits():
  by_split = passages_by_split(read_documents())
  texts = {split: {p.text for p in by_split[split] if len(p.text) > 200}
           for split in by_split}
  assert not texts["train"] & texts["validation"]


def test_builder_cuts_books_at_their_headings():
  raw = "TITLE\nBOOK I.\none   10\nBOOK II. \ntwo\n"
  found = list(build_bundled_text._between(
      raw, build_bundled_text._BOOK.finditer(raw)))
  assert found == [("I", "BOOK I.\none   10\n"), ("II", "BOOK II. \ntwo\n")]


# Preparation.


def test_data_set_is_prepared_when_it_is_first_read(cache, capsys):
  source = public_domain_text()
  assert list(source.splits) == ["train", "validation"]
  assert "public_domain_text:1.0.0" in repr(source)
  assert not cache.exists()
  assert source.num_input_examples("validation") > 300
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.count("\n") == 1
  assert "public_domain_text: prepared in" in captured.err
  assert len(source.list_shards("train")) == 16
  # Sources are mixed from the first example on, in the same order every time.
  ds = source.get_dataset("train", shuffle=False)
  first = [ex["source"] for ex in tfds.as_numpy(ds.take(100))]
  assert len(set(first)) == len(SOURCES)
  assert first == [ex["source"] for ex in tfds.as_numpy(ds.take(100))]


def test_cache_directory_follows_gin_then_the_environment(tmp_path):
  assert cache_dir() == str(tmp_path / "cache")
  gin.bind_parameter("tasks.cache_dir.path", "~/elsewhere")
  assert cache_dir() == os.path.expanduser("~/elsewhere")


def test_a_prepared_data_set_is_not_read_again(cache):
  prepare("words", "1.0.0", two_passages, str(cache))
  prepare("words", "1.0.0", None, str(cache))
  assert tfds.builder(
      "words:1.0.0", data_dir=str(cache)).info.splits["train"].num_examples == 1


def test_a_killed_run_leaves_nothing_for_the_next(cache):
  def die():
    os.kill(os.getpid(), signal.SIGKILL)

  child = os.fork()
  if not child:
    prepare("words", "1.0.0", die, str(cache))
  _, status = os.waitpid(child, 0)
  assert os.WTERMSIG(status) == signal.SIGKILL
  leftover, = os.listdir(cache)
  assert leftover.startswith("words.partial-")
  prepare("words", "1.0.0", two_passages, str(cache))
  assert os.listdir(cache) == ["words"]


def test_a_running_process_keeps_its_temporary_directory(cache):
  def and_meanwhile():
    temporary, = os.listdir(cache)
    prepare("words", "1.0.0", two_passages, str(cache))
    assert sorted(os.listdir(cache)) == sorted(["words", temporary])
    return two_passages()

  # The inner one finishes first; the outer one uses its result.
  prepare("words", "1.0.0", and_meanwhile, str(cache))
  assert os.listdir(cache) == ["words"]
  assert tfds.builder("words:1.0.0", data_dir=str(cache)).is_prepared()


def test_a_half_written_data_set_is_replaced(cache):
  half = cache / "words" / "1.0.0"
  half.mkdir(parents=True)
  (half / "words-train.tfrecord-00000-of-00016").write_bytes(b"half")
  prepare("words", "1.0.0", two_passages, str(cache))
  assert tfds.builder("words:1.0.0", data_dir=str(cache)).is_prepared()


def test_unwritable_cache_directory(tmp_path):
  (tmp_path / "file").write_text("")
  gin.bind_parameter("tasks.cache_dir.path", str(tmp_path / "file" / "cache"))
  with pytest.raises(ValueError, match=(
      "cache_dir: the cache directory must be writable, with path=.*, "
      "error='Not a directory'. Set tasks.cache_dir.path = '<directory>', or "
      "the environment variable SWITCH_MTF_CACHE")):
    first_inputs("public_domain_span_corruption_1k")


# A user's own text.


def bind_local(tmp_path, content):
  path = tmp_path / "mine.txt"
  path.write_bytes(content)
  gin.bind_parameter("local_text.path", str(path))
  return path


def test_local_text_becomes_examples(tmp_path):
  path = bind_local(tmp_path, "\n\n".join(
      f"Document {i} is here.\nIt has two lines." for i in range(40)).encode())
  assert "is here" in first_inputs("local_text_span_corruption")
  source = local_text.local_text_source()
  assert source.num_input_examples("train") > 30
  assert source.num_input_examples("validation") >= 1
  # An edited file is prepared anew.
  path.write_text("one\n\ntwo\n\nthree")
  assert source.num_input_examples("train") == 2


def test_adding_to_local_text_moves_no_document():
  old = [f"document {i}" for i in range(200)]
  new = [f"new {i}" for i in range(200)] + old

  def held_out(documents):
    split = local_text.split_documents(documents, "mine.txt")["validation"]
    return {p.text for p in split}

  assert 3 <= len(held_out(old)) <= 20
  # But for the one with the lowest hash, which is always held out.
  assert len(held_out(old) - held_out(new)) <= 1
  assert not (held_out(new) - held_out(old)) & set(old)


@pytest.mark.parametrize("content, message", [
    (b"", "local_text: the file must hold text, with path=.*, bytes=0. "
          "Set local_text.path"),
    (b" \n\n \n", "local_text: the file must hold text, with path=.*, bytes=5"),
    (b"one\n\ncaf\xe9", "local_text: the file must be UTF-8 text, with "
                        r"local_text.path=.*, line=3, byte=4 \(0xe9\). "),
    (b"one\n\none", "local_text: the file must hold at least two different "
                    "documents, .*documents=1. Separate documents by a blank"),
])
def test_local_text_that_cannot_be_used(tmp_path, content, message):
  bind_local(tmp_path, content)
  with pytest.raises(ValueError, match=message):
    first_inputs("local_text_span_corruption")


@pytest.mark.parametrize("path, reason", [
    (None, "is not set"), ("", "is not set"), ("/tmp", "is a folder"),
    ("no/such/file.txt", "does not exist, and neither does its folder")])
def test_local_text_without_a_file(path, reason):
  gin.bind_parameter("local_text.path", path)
  with pytest.raises(ValueError, match=(
      f"local_text: path must be a text file, with path={path!r}, which "
      f"{reason}. Set local_text.path = '<file>'")):
    first_inputs("local_text_span_corruption")


def test_local_text_reads_the_bound_vocabulary():
  gin.bind_parameter("local_text.vocabulary", "no/such.model")
  with pytest.raises(ValueError, match=(
      "local_text: the vocabulary must be a sentencepiece model, with "
      "vocabulary='no/such.model', which is not a file. Set "
      "local_text.vocabulary")):
    _ = local_text.LocalVocabulary().vocab_size
  gin.bind_parameter(
      "local_text.vocabulary", local_text.vocabularies.small_model(1))
  assert local_text.LocalVocabulary().vocab_size == 1100


# The fetched corpus.


def test_mixed_english_must_be_fetched(cache):
  with pytest.raises(ValueError, match=(
      "mixed_english: the corpus must be fetched before it is used, with "
      f"path={cache}/mixed_english.jsonl. Run: python -m tasks.fetch")):
    first_inputs("mixed_english_span_corruption")


def test_mixed_english_reads_the_fetched_file(cache):
  documents = fetch.with_splits(
      Document(f"Whale number {i}.", "brown", f"d{i}", domain="humor")
      for i in range(100))
  path = fetch.write(encode(documents), str(cache))
  assert list(read_documents(path))[0].domain == "humor"
  assert "hale" in first_inputs("mixed_english_span_corruption_4k_brown")


def test_fetched_documents_are_split_by_name_and_not_repeated():
  kept = list(fetch.with_splits([
      Document("text", "s", "a"), Document("text", "s", "b"),
      Document("", "s", "c"), Document("held", "s", "d", "validation")]))
  assert [d.name for d in kept] == ["a", "d"]
  assert kept[0].split == passages.split_of("s/a")
  assert kept[1].split == "validation"


def test_brown_tags_are_removed():
  tagged = ("\n\n\tThe/at jury/nn said/vbd ``/`` no/at ''/'' (/( twice/rb )/)"
            " ,/, and/cc 1//cd ;/. ;/.\n\n\n\tEnd/nn ./.\n")
  assert fetch._untag(tagged) == (
      "The jury said “no” (twice), and 1/;\n\nEnd.")


# Package files.

PACKAGE = packages.Package(
    "npm", "words", "1.0.0", "words-1.0.0.tgz",
    hashlib.sha256(b"good").hexdigest())


def serve(monkeypatch, content):
  """Makes `npm pack` write this content."""
  calls = []

  def run(command, **unused):
    calls.append(command)
    directory = command[command.index("--pack-destination") + 1]
    with open(os.path.join(directory, PACKAGE.file), "wb") as f:
      f.write(content)

  monkeypatch.setattr(packages.subprocess, "run", run)
  return calls


def test_a_package_file_is_downloaded_once(tmp_path, monkeypatch, capsys):
  calls = serve(monkeypatch, b"good")
  path = packages.download(PACKAGE, str(tmp_path))
  assert packages.download(PACKAGE, str(tmp_path)) == path
  assert len(calls) == 1
  assert os.listdir(tmp_path) == [PACKAGE.file]
  assert "words-1.0.0.tgz: 4 bytes" in capsys.readouterr().err
  # A file that was cut short is replaced.
  with open(path, "wb") as f:
    f.write(b"go")
  packages.download(PACKAGE, str(tmp_path))
  assert len(calls) == 2


def test_other_bytes_than_the_pinned_are_refused(tmp_path, monkeypatch):
  serve(monkeypatch, b"evil")
  with pytest.raises(ValueError, match=(
      "download: the file must be the pinned one, with file=words-1.0.0.tgz, "
      f"sha256=.*, expected={PACKAGE.sha256}")):
    packages.download(PACKAGE, str(tmp_path))
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command, message", [
    (["no-such-program"], "download: no-such-program must be installed, with "
                          "package=words"),
    (["ls", "no/such"], "download: npm must be able to fetch the file, with "
                        "package=words==1.0.0, error=.*no/such"),
])
def test_a_failed_download_says_what_to_do(
    tmp_path, monkeypatch, command, message):
  monkeypatch.setattr(packages, "_command", lambda *_: command)
  with pytest.raises(RuntimeError, match=message):
    packages.download(PACKAGE, str(tmp_path))


def test_fetch_refuses_another_corpus(cache, monkeypatch):
  monkeypatch.setattr(fetch, "build", lambda _: json.dumps({}).encode())
  monkeypatch.setattr("sys.argv", ["fetch"])
  with pytest.raises(ValueError, match=(
      "fetch: the corpus must be the published one, with sha256=")):
    fetch.main()
  assert not cache.exists()
