"""The tasks as a run sees them: names, features, vocabularies, examples."""

import functools
import hashlib
import inspect
import itertools
import os
from unittest import mock

import numpy as np
import pytest
import seqio
import t5.data.tasks  # noqa: F401  (registers T5's own tasks)
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow.python.autograph.pyct import transpiler

from tasks import (
    build_t5_vocabulary,
    fetch,
    metrics,
    mixed,
    pretrain,
    text,
    train_vocabulary,
    vocabularies,
)
from tasks.text import Document, encode

LENGTHS = {"inputs": 128, "targets": 64}
VOCABULARIES = {"": vocabularies.T5, "_1k": vocabularies.SMALL_1K,
                "_4k": vocabularies.SMALL_4K}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """Prepares data sets outside the home directory, once for all tests."""
  path = tmp_path_factory.getbasetemp() / "cache"
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(path))
  return path


def examples(name, *, split="validation", count=None, **kwargs):
  """Examples of a task, as dictionaries of arrays."""
  ds = seqio.get_mixture_or_task(name).get_dataset(
      LENGTHS, split=split, **({"shuffle": False} | kwargs))
  return list(tfds.as_numpy(ds if count is None else ds.take(count)))


def spans(ids, vocabulary):
  """Cuts ids at the sentinels: the sentinels, and what is between them."""
  first = vocabulary.vocab_size - vocabularies.EXTRA_IDS
  sentinels, pieces = [], [[]]
  for i in ids:
    if i >= first:
      sentinels.append(int(i))
      pieces.append([])
    else:
      pieces[-1].append(int(i))
  return sentinels, pieces


def unmask(example, vocabulary):
  """The tokens before masking, and the masked spans among them."""
  assert example["inputs"][-1] == example["targets"][-1] == vocabulary.eos_id
  kept_at, kept = spans(example["inputs"][:-1], vocabulary)
  masked_at, (before_first, *masked) = spans(
      example["targets"][:-1], vocabulary)
  assert before_first == []
  assert kept_at == masked_at
  assert kept_at == [vocabulary.vocab_size - 1 - i
                     for i in range(len(kept_at))]
  return sum(itertools.chain(*itertools.zip_longest(
      kept, masked, fillvalue=[])), start=[]), masked


def test_tasks_are_registered_under_these_names():
  names = set(seqio.TaskRegistry.names())
  for corpus, suffixes, sources in (
      ("public_domain", ("", "_1k", "_4k"), text.SOURCES),
      ("mixed_english", ("", "_4k"), mixed.SOURCES)):
    for suffix in suffixes:
      assert f"{corpus}_span_corruption{suffix}" in names
      for source in sources:
        assert f"{corpus}_span_corruption{suffix}_{source}" in names
  assert "local_text_span_corruption" in names


def test_t5_vocabulary_gives_t5_ids():
  # As published: T5's own code and documentation use this sentence.
  sentence = "translate English to German: The house is wonderful."
  ids = [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]
  assert vocabularies.T5.encode(sentence) == ids
  assert vocabularies.T5.decode(ids) == sentence
  assert vocabularies.T5.vocab_size == 32100
  assert vocabularies.T5.encode("<extra_id_0> <extra_id_1>") == [32099, 32098]


def test_t5_vocabulary_file_is_the_built_one():
  with open(vocabularies.T5_MODEL, "rb") as f:
    found = hashlib.sha256(f.read()).hexdigest()
  assert found == build_t5_vocabulary.MODEL_SHA256


def test_model_is_built_from_a_tokenizer():
  model = build_t5_vocabulary.build_model({
      "normalizer": {"normalizers": [
          {"type": "Precompiled", "precompiled_charsmap": ""}]},
      "model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0],
                          ["\u2581a", -1.0], ["b", -2.0]]}})
  vocabulary = train_vocabulary.sentencepiece.SentencePieceProcessor(
      model_proto=model)
  assert vocabulary.encode("ab c") == [3, 4, 2]


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values())
def test_vocabularies_share_t5s_special_ids(vocabulary):
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id,
          vocabulary.bos_id) == (0, 1, 2, -1)
  assert vocabulary.vocab_size == vocabulary.encode("<extra_id_0>")[0] + 1
  # Every letter, digit and common mark has a piece.
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
  assert 2 not in vocabulary.encode(" ".join(letters + ".,;:?!'\"()[]&-$"))


def test_small_vocabularies_have_the_named_sizes():
  assert vocabularies.SMALL_1K.vocab_size == 1000 + vocabularies.EXTRA_IDS
  assert vocabularies.SMALL_4K.vocab_size == 4000 + vocabularies.EXTRA_IDS


def test_small_vocabularies_are_trained_on_the_training_split():
  held_out = {line for d in text.read_documents() if d.split == "validation"
              for line in d.text.split("\n") if len(line) > 80}
  lines = train_vocabulary.training_lines()
  assert held_out and not held_out & set(lines)
  # The same lines give the same bytes.
  assert (train_vocabulary.train(lines[:200], 200)
          == train_vocabulary.train(lines[:200], 200))


@pytest.mark.parametrize("suffix, split", [
    ("", "validation"), ("_1k", "train"), ("_4k", "validation")])
def test_every_vocabulary_yields_batches(suffix, split):
  vocabulary = VOCABULARIES[suffix]
  name = f"public_domain_span_corruption{suffix}"
  for ex in examples(name, split=split, count=4):
    assert len(ex["inputs"]) <= LENGTHS["inputs"]
    assert len(ex["targets"]) <= LENGTHS["targets"]
    assert ex["inputs"].max() == vocabulary.vocab_size - 1
    target = seqio.TaskRegistry.get(name).postprocess_fn(
        ex["targets_pretokenized"], example=ex, is_target=True)
    assert target.startswith("<extra_id_0>")
    assert target == vocabulary.decode(ex["targets"].tolist())


def test_spans_and_rest_make_up_the_text():
  # Nothing is lost over a whole split, at no border of passage or example.
  source = text.public_domain_text()
  passages = [
      ex["text"].decode() for ex in tfds.as_numpy(
          source.get_dataset("validation", shuffle=False))
      if ex["source"] == b"moby_dick"]
  tokens = sum(map(vocabularies.SMALL_1K.encode, passages), start=[])
  found = []
  for ex in examples("public_domain_span_corruption_1k_moby_dick"):
    found += unmask(ex, vocabularies.SMALL_1K)[0]
  assert len(tokens) > 10_000
  assert found == tokens


def test_fifteen_per_cent_is_masked_in_spans_of_three():
  num_tokens, lengths = 0, []
  for ex in examples("public_domain_span_corruption_1k", count=300):
    tokens, masked = unmask(ex, vocabularies.SMALL_1K)
    num_tokens += len(tokens)
    lengths += map(len, masked)
  assert sum(lengths) / num_tokens == pytest.approx(0.15, abs=0.005)
  assert np.mean(lengths) == pytest.approx(3.0, abs=0.1)


def test_half_corrupted_text_has_one_blank_at_its_end(tmp_path, monkeypatch):
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path))
  words = " ".join(f"whale {i}" for i in range(200))
  fetch.write(encode(fetch.with_splits(
      Document(words, "brown", f"d{i}") for i in range(100))), str(tmp_path))
  ds = seqio.get_mixture_or_task("mixed_english_half_corrupted_1k").get_dataset(
      {"inputs": 24, "targets": 24}, "train", seed=0)
  lengths = []
  for ex in tfds.as_numpy(ds.take(20)):
    tokens, (masked,) = unmask(ex, vocabularies.SMALL_1K)
    assert masked == tokens[-len(masked):]
    assert abs(2 * len(masked) - len(tokens)) <= 1
    lengths.append(len(tokens))
    # Texts follow one another.
    assert vocabularies.SMALL_1K.decode(tokens) in f"{words} {words}"
  # 22 tokens, a blank and the end; the blank, 22 and the end. Less where the
  # corpus ends.
  assert max(lengths) == np.median(lengths) == 44


def test_examples_equal_those_of_t5s_own_task():
  # T5's C4 task, with its text and vocabulary replaced by ours.
  ours = seqio.TaskRegistry.get("public_domain_span_corruption_4k")
  theirs = seqio.Task(
      "t5s_preprocessors", source=text.public_domain_text(),
      preprocessors=seqio.TaskRegistry.get(
          "c4_v220_span_corruption").preprocessors,
      output_features=ours.output_features)
  ds = theirs.get_dataset(LENGTHS, "validation", shuffle=True, seed=3)
  for expected, found in zip(
      tfds.as_numpy(ds.take(50)),
      examples(ours.name, count=50, shuffle=True, seed=3), strict=True):
    np.testing.assert_array_equal(found["inputs"], expected["inputs"])
    np.testing.assert_array_equal(found["targets"], expected["targets"])


def test_a_seed_fixes_the_examples():
  def first(seed):
    return [ex["inputs"].tolist() for ex in examples(
        "public_domain_span_corruption_1k_milton", count=20,
        shuffle=True, seed=seed)]

  assert first(1) == first(1)
  assert first(1) != first(2)


@pytest.mark.parametrize("source", text.SOURCES)
def test_source_tasks_hold_their_source_alone(source):
  documents = [d for d in text.read_documents() if d.source == source]
  words = set(" ".join(d.text for d in documents).split())
  for ex in examples(f"public_domain_span_corruption_4k_{source}", count=5):
    tokens, _ = unmask(ex, vocabularies.SMALL_4K)
    # The first and last word may have been cut.
    found = vocabularies.SMALL_4K.decode(tokens).split()[1:-1]
    assert set(found) <= words


def test_span_scores_count_sequences_and_words():
  scores = metrics.span_scores(
      ["<extra_id_0> the whale <extra_id_1> a", "<extra_id_0> sea"],
      ["<extra_id_0> the sail <extra_id_1> a", "<extra_id_0> sea"])
  # One of two sequences; "the", "a" and "sea" of four words.
  assert scores == {"sequence_accuracy": 50.0, "word_accuracy": 75.0}
  assert metrics.span_scores([], []) == {
      "sequence_accuracy": 0.0, "word_accuracy": 0.0}


def test_span_scores_take_log_likelihoods():
  # 5 + 3 bytes, -2 - 6 nats.
  assert metrics.span_scores(["whale", "sea"], [-2.0, -6.0]) == {
      "log_likelihood_per_byte": -1.0}


def test_evaluation_finds_a_metric():
  # utils.eval_model leaves out tasks without one.
  for name in seqio.TaskRegistry.names():
    if "_span_corruption" in name and not name.startswith("c4"):
      assert seqio.TaskRegistry.get(name).metric_fns, name


def add_one(dataset, sequence_length):
  return dataset.map(lambda x: x + sequence_length["targets"])


@pytest.mark.parametrize("step", [
    add_one, functools.partial(add_one, sequence_length={"targets": 1})])
def test_autograph_leaves_steps_alone(step):
  def translates(step):
    # AutoGraph goes on without what it cannot translate.
    with mock.patch.object(transpiler.PyToPy, "transform_function",
                           side_effect=AssertionError) as translate:
      y = step(tf.data.Dataset.range(3), sequence_length={"targets": 1})
      assert list(tfds.as_numpy(y)) == [1, 2, 3]
    return translate.called

  assert translates(step)
  assert not translates(pretrain.as_written(step))
  # seqio gives a step the arguments that its signature names.
  assert "sequence_length" in inspect.signature(
      pretrain.as_written(step)).parameters


def test_a_place_to_cache_stays_one():
  place = seqio.CacheDatasetPlaceholder()
  assert pretrain.as_written(place) is place


def test_bundled_vocabularies_are_not_replaced_by_mistake(monkeypatch):
  monkeypatch.setattr(train_vocabulary.sys, "argv", ["x", "my.txt"])
  with pytest.raises(SystemExit, match="there must be no argument, with "
                     "argument=my.txt"):
    train_vocabulary.main()
  # Training that fails leaves the file.
  monkeypatch.setattr(train_vocabulary.sys, "argv", ["x"])
  monkeypatch.setattr(train_vocabulary, "training_lines", list)
  monkeypatch.setattr(
      train_vocabulary, "train", mock.Mock(side_effect=RuntimeError))
  sizes = [os.path.getsize(train_vocabulary.small_model(n)) for n in (1, 4)]
  with pytest.raises(RuntimeError):
    train_vocabulary.main()
  assert sizes == [
      os.path.getsize(train_vocabulary.small_model(n)) for n in (1, 4)]
