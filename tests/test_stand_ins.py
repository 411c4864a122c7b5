"""The stand-in tasks: batches in full, vocabulary, metrics, errors."""

import types

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from tasks import (
    fetch,
    stand_in_baselines,
    stand_in_multilingual,
    stand_in_vocabulary,
    stand_ins,
    vocabularies,
)
from tasks import stand_in_data as data
from tasks.prepared import Passage
from tasks.stand_in_data import Article, Question, Sentence


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Gives each test an empty cache directory and no gin bindings."""
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path / "cache"))
  yield tmp_path / "cache"
  gin.clear_config()


def write_data(cache, name, examples):
  """Puts (split, example) pairs where the fetched data stands."""
  fetch.write(data.encode(examples), str(cache), name)


def batches(name, lengths, split="validation"):
  """Inputs and targets of a task's examples as text, sorted."""
  task = seqio.TaskRegistry.get(name)
  ds = task.get_dataset(lengths, split, shuffle=False)
  decode = task.output_features["targets"].vocabulary.decode
  return sorted((decode(ex["inputs"].tolist()), decode(ex["targets"].tolist()))
                for ex in tfds.as_numpy(ds))


# From examples to batches.


@pytest.mark.parametrize("suffix", ["", "_4k"])
def test_labels_become_text(cache, suffix):
  write_data(cache, data.ACCEPTABILITY, [
      ("train", Sentence("0", "It is so.", 1)),
      ("validation", Sentence("1", "Do anyone know?", 0)),
      ("validation", Sentence("2", "Does anyone know?", 1))])
  assert batches(
      "stand_in_acceptability" + suffix, {"inputs": 32, "targets": 8}) == [
          ("cola sentence: Do anyone know?", "unacceptable"),
          ("cola sentence: Does anyone know?", "acceptable")]
  write_data(cache, data.SENTIMENT, [
      ("train", Sentence("0", "Too tepid", 0)),
      ("validation", Sentence("1", "A gem.", 1))])
  assert batches(
      "stand_in_sentiment" + suffix, {"inputs": 32, "targets": 8}, "train") == [
          ("sst2 sentence: Too tepid", "negative")]


def test_openings_by_hand():
  # Passages of 60 words begin at words 0, 40, 80, ... as long as more than 60
  # words are left: of 110 at 0 and 40, of 3 at 0.
  texts = [[f"{letter}{n}" for n in range(words)]
           for letter, words in (("a", 110), ("b", 3))]
  found = stand_ins.openings(tf.data.Dataset.from_tensor_slices(
      {"document": [" ".join(words) for words in texts]}))
  assert [(ex["document"].decode(), ex["summary"].decode())
          for ex in tfds.as_numpy(found)] == [
              (" ".join(texts[0][0:60]), "a0 a1 a2 a3 a4"),
              (" ".join(texts[0][40:100]), "a40 a41 a42 a43 a44"),
              ("b0 b1 b2", "b0 b1 b2")]


@pytest.mark.parametrize("suffix", ["", "_4k"])
def test_questions_and_articles_become_text(cache, suffix):
  write_data(cache, data.CLOSED_BOOK, [
      ("train", Question("0", "Fat", ["Food"])),
      ("validation", Question("1", "Horace", ["Roman poet", "poet"]))])
  assert batches(
      "stand_in_closed_book" + suffix, {"inputs": 32, "targets": 8}) == [
          ("trivia question: Horace", "Roman poet")]
  write_data(cache, data.HEADLINE, [
      ("train", Article("0", "It snowed.", "Snow")),
      ("validation", Article("1", "It rained a lot on the day.", "Rain"))])
  ends = batches("stand_in_headline" + suffix, {"inputs": 64, "targets": 8})
  assert ends == [("summarize: It rained a lot on the day.", "Rain")]
  assert batches(
      "stand_in_opening" + suffix, {"inputs": 64, "targets": 12}) == [
          ("summarize: It rained a lot on the day.", "It rained a lot on")]
  write_data(cache, data.TITLE, [
      ("train", Article("0", "It snowed.", "Snow")),
      ("validation", Article("1", "Snow is frozen.", "Snow"))])
  assert batches(
      "stand_in_title" + suffix, {"inputs": 64, "targets": 12}) == [
          ("summarize: Snow is frozen.", "Snow")]
  # Cut to the length.
  (cut, _), = batches(
      "stand_in_headline" + suffix, {"inputs": 8, "targets": 8})
  assert ends[0][0].startswith(cut) and len(cut) < len(ends[0][0])


def test_fine_tuning_mixes_in_proportion(cache):
  for name, count in ((data.ACCEPTABILITY, 5), (data.SENTIMENT, 3)):
    write_data(cache, name, [("validation", Sentence("v", "It is.", 1)), *(
        ("train", Sentence(str(n), "It is.", 1)) for n in range(count))])
  write_data(cache, data.CLOSED_BOOK, [
      (split, Question(split, "Fat", ["Food"]))
      for split in ("train", "validation")])
  mixture = seqio.MixtureRegistry.get("stand_in_fine_tuning_4k")
  assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {
      "stand_in_acceptability_4k": 5, "stand_in_sentiment_4k": 3,
      "stand_in_closed_book_4k": 1}


def declaration(language, words):
  """A language with two articles, one of them held out."""
  return [(language, Passage(f"{language}/1", words, language, "1")),
          (f"{language}-validation",
           Passage(f"{language}/3", words, language, "3"))]


def test_a_language_has_its_own_text(cache):
  write_data(cache, data.MULTILINGUAL, [
      *declaration("sw", "Watu wote wamezaliwa huru."),
      *declaration("zh", "\u4eba\u4eba\u751f\u800c\u81ea\u7531\u3002")])
  task = seqio.TaskRegistry.get("stand_in_multilingual_zh_span_corruption")
  ex, = tfds.as_numpy(task.get_dataset(
      {"inputs": 64, "targets": 16}, "validation", shuffle=False))
  vocabulary = task.output_features["targets"].vocabulary
  first = vocabulary.vocab_size - 1
  masked = [i for i in ex["targets"] if i < first - 99 or i > first]
  kept = [i for i in ex["inputs"] if i < first - 99 or i > first]
  assert sorted([*masked, *kept]) == sorted([
      *vocabulary.encode("\u4eba\u4eba\u751f\u800c\u81ea\u7531\u3002"), 1, 1])
  assert ex["targets"][0] == first


def test_languages_are_sampled_by_a_power_of_their_size(cache):
  write_data(cache, data.MULTILINGUAL, [
      *declaration("sw", "x" * 100), *declaration("zh", "x" * 6000)])
  task = seqio.TaskRegistry.get("stand_in_multilingual_zh_span_corruption")
  other = seqio.TaskRegistry.get("stand_in_multilingual_sw_span_corruption")

  def ratio():
    rate = seqio.MixtureRegistry.get(
        "stand_in_multilingual_span_corruption").get_rate
    return rate(task) / rate(other)

  default = ratio()
  gin.bind_parameter("stand_in_language_rate.alpha", 1.0)
  # 100 and 6,000 bytes of text, and some of names.
  assert 20 < ratio() < 60
  assert default == pytest.approx(ratio() ** 0.3)
  gin.bind_parameter("stand_in_language_rate.alpha", 0.0)
  assert ratio() == 1


def test_there_are_a_hundred_languages():
  mixture = seqio.MixtureRegistry.get(f"{stand_in_multilingual.MIXTURE}_4k")
  assert len(mixture.tasks) == len(stand_in_multilingual.LANGUAGES) == 100
  assert len(set(data.DECLARATIONS.values())) == 100


def test_the_multilingual_vocabulary_knows_every_character():
  vocabulary = vocabularies.MULTILINGUAL_4K
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id,
          vocabulary.vocab_size) == (0, 1, 2, 4100)
  # The last is in no declaration.
  text = "Kila mtu; \u0447\u0435\u043b\u043e\u0432\u0435\u043a \u4eba \u20bf"
  ids = vocabulary.encode(text)
  assert vocabulary.unk_id not in ids
  assert vocabulary.decode(ids) == text
  assert vocabulary.encode("a\n\tb\u3000c") == vocabulary.encode("a b c")
  with tf.compat.v1.Session() as session:
    assert session.run(vocabulary.encode_tf(text)).tolist() == ids


def test_the_multilingual_vocabulary_is_trained_on_the_training_split():
  examples = {"sw": [Passage("a", "one\ntwo", "sw", "1")],
              "sw-validation": [Passage("b", "three", "sw", "3")]}
  assert stand_in_vocabulary.training_lines(examples) == ["one", "two"]
  lines = ["Watu wote wamezaliwa huru."] * 20
  assert stand_in_vocabulary.train(lines, 276) == (
      stand_in_vocabulary.train(lines, 276))


# Metrics.


def postprocessed(name, text, **kwargs):
  return seqio.TaskRegistry.get(name).postprocess_fn(text, **kwargs)


def test_acceptability_is_scored_by_matthews():
  # tp 2, tn 1, fp 1, fn 0: (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1).
  labels = ["acceptable", "acceptable", "unacceptable", "unacceptable"]
  answers = ["acceptable", "acceptable", "unacceptable", "acceptable"]
  targets, predictions = (
      [postprocessed("stand_in_acceptability", text) for text in texts]
      for texts in (labels, answers))
  scores = stand_in_baselines.score(
      "stand_in_acceptability", targets, predictions)
  assert scores == pytest.approx(
      {"matthews_corrcoef": 100 * 2 / 12**0.5, "accuracy": 75.0})


def test_sentiment_is_scored_by_accuracy():
  targets, predictions = (
      [postprocessed("stand_in_sentiment_4k", text) for text in texts]
      for texts in (["positive", "negative", "negative", "positive"],
                    ["positive", "positive", "neg", "negative"]))
  assert stand_in_baselines.score(
      "stand_in_sentiment_4k", targets, predictions) == {"accuracy": 25.0}


def test_answers_are_scored_by_exact_match_and_f1():
  target = postprocessed(
      "stand_in_closed_book", "Roman poet", is_target=True,
      example={"answers": [b"Roman poet", b"writer"]})
  assert target == ["Roman poet", "writer"]
  # The first matches an answer but for case and article; the second has one
  # of three words right, of the answer's two: F1 = 2*(1/3*1/2) / (1/3+1/2).
  assert stand_in_baselines.score(
      "stand_in_closed_book", [target, target],
      ["The Writer", "Greek lyric poet"]) == pytest.approx(
          {"em": 50.0, "f1": 100 * (1 + 0.4) / 2})


def test_headlines_are_scored_by_rouge():
  # Two of three words in common, "of two" in the same order.
  scores = stand_in_baselines.score(
      "stand_in_headline", ["rain stops play"], ["rain stops game"])
  assert scores["rouge1"] == pytest.approx(100 * 2 / 3)
  assert scores["rouge2"] == pytest.approx(100 / 2)
  assert scores["rougeLsum"] == pytest.approx(100 * 2 / 3)


# Baselines.


def test_baselines_by_hand():
  sentences = [Sentence(str(n), "s", int(n < 3)) for n in range(4)]
  assert stand_in_baselines.most_frequent_label(
      "stand_in_sentiment", sentences, sentences) == {"accuracy": 75.0}
  questions = [Question("a", "Fat", ["Food"]), Question("b", "Moon", ["Moon"]),
               Question("c", "Bread", ["Food"])]
  assert stand_in_baselines.most_frequent_answer(
      "stand_in_closed_book", questions, questions)["em"] == pytest.approx(
          200 / 3)
  assert stand_in_baselines.copied_question(
      "stand_in_closed_book", questions, questions)["em"] == pytest.approx(
          100 / 3)
  articles = [Article("a", "Rain fell on us.", "Rain fell")]
  assert stand_in_baselines.first_words(
      "stand_in_headline", articles, articles)["rouge1"] == 100.0


def test_token_frequencies_by_hand(monkeypatch):
  targets = {"train": [[1, 2], [1]], "validation": [[1, 1, 3]]}
  provider = types.SimpleNamespace(
      output_features={"targets": types.SimpleNamespace(
          vocabulary=types.SimpleNamespace(vocab_size=4))},
      get_dataset=lambda lengths, split, **_: types.SimpleNamespace(
          take=lambda count: types.SimpleNamespace(
              as_numpy_iterator=lambda: iter(
                  [{"targets": np.array(t)} for t in targets[split][:count]]))))
  monkeypatch.setattr(seqio, "get_mixture_or_task", lambda _: provider)
  # Counts 0, 2, 1, 0, and one more each: 1, 3, 2, 1 of 7.
  assert stand_in_baselines.token_frequencies(
      "any", {}, 2)["neg_log_perplexity"] == pytest.approx(
          (2 * np.log(3 / 7) + np.log(1 / 7)) / 3)


def test_measured_figures_are_read(tmp_path):
  event = tf.compat.v1.Event(step=7, summary=tf.compat.v1.Summary(value=[
      tf.compat.v1.Summary.Value(tag="eval/task/em", simple_value=0.5)]))
  (tmp_path / "validation_eval").mkdir()
  with tf.io.TFRecordWriter(
      str(tmp_path / "validation_eval" / "events.out.1")) as writer:
    writer.write(event.SerializeToString())
  (tmp_path / "metrics.jsonl").write_text(
      '\n{"kind": "train", "step": 7, "loss": 2.0}\n{"kind": "eval", "name": '
      '"task_validation", "step": 7, "neg_log_perplexity": -3.0}')
  assert list(stand_in_baselines.measured(str(tmp_path))) == [
      ("eval/task/em", 7, 0.5), ("task_validation/neg_log_perplexity", 7, -3.0)]


# Errors.


@pytest.mark.parametrize("name", [
    "stand_in_acceptability", "stand_in_sentiment_4k", "stand_in_closed_book",
    "stand_in_headline", "stand_in_title",
    "stand_in_multilingual_sw_span_corruption"])
def test_data_must_be_fetched(cache, name):
  stem = name.removesuffix("_4k").removesuffix("_sw_span_corruption")
  with pytest.raises(ValueError, match=(
      f"{stem}: the data must be fetched before it is used, with "
      f"path={cache}/{stem}.jsonl. Run: python -m tasks.fetch stand_ins, or "
      "set stand_ins.directory")):
    seqio.TaskRegistry.get(name).num_input_examples("train")


def test_the_directory_can_be_bound(tmp_path):
  gin.bind_parameter("stand_ins.directory", str(tmp_path / "mine"))
  with pytest.raises(ValueError, match="path=.*/mine/stand_in_headline.jsonl"):
    seqio.TaskRegistry.get("stand_in_headline").num_input_examples("train")
