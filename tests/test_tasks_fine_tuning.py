"""The fine-tuning tasks: what models read, write and are scored by."""

import functools
import re

import gin
import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds
from helpers.graphs import ROOT
from helpers.mocked_tfds import ARC, dataset_of, mocked_tfds

from tasks import c4, fine_tuning, text_to_text, vocabularies

LENGTHS = {"inputs": 64, "targets": 24}
PAGE = (ROOT / "docs/tasks.md").read_text()
ANLI_SIZES = {"anli/r1:0.1.0": 16_946, "anli/r2:0.1.0": 45_460,
              "anli/r3:0.1.0": 100_459}


def tables():
  """Rows of the page, by the first column's name, as lists of cells."""
  found = {}
  for line in PAGE.splitlines():
    cells = [cell.strip() for cell in line.strip("|").split(" |")]
    names = re.findall(r"`([^`]+)`", cells[0])
    if line.startswith("| `"):
      found |= dict.fromkeys(names, cells)
  return found


def code(cell):
  """What stands in backquotes."""
  return re.findall(r"`([^`]+)`", cell)


NAMES = [task.name for task in seqio.MixtureRegistry.get("fine_tuning").tasks]


@pytest.fixture(autouse=True)
def no_bindings():
  yield
  gin.clear_config()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  """The examples of a task, on mocked TFDS."""
  directory = tmp_path_factory.mktemp("tfds")

  @functools.cache
  def of(name):
    task = seqio.TaskRegistry.get(name)
    with mocked_tfds(directory):
      split = sorted(task.splits)[0]
      return list(tfds.as_numpy(task.get_dataset(
          LENGTHS, split, shuffle=False, num_epochs=1)))

  return of


# Every task.


@pytest.mark.parametrize("name", NAMES)
def test_a_task_yields_its_texts_as_ids(name, examples):
  prefix, = code(tables()[name][3])
  assert len(examples(name)) >= 2
  for example in examples(name):
    text = example["inputs_pretokenized"].decode()
    assert text.startswith(prefix)
    for feature, length in LENGTHS.items():
      ids = vocabularies.T5.encode(
          example[f"{feature}_pretokenized"].decode())
      np.testing.assert_array_equal(
          example[feature], [*ids[:length - 1], vocabularies.T5.eos_id])


# The mocked examples may all have one label, of which sklearn warns.
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:F-score is ill-defined")
@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_scores_in_full(name, examples):
  task = seqio.TaskRegistry.get(name)
  targets, predictions = [], []
  for example in examples(name):
    text = example["targets_pretokenized"].decode()
    target = task.postprocess_fn(text, example=example, is_target=True)
    if name == "trivia_qa":  # TFDS makes up aliases without the answer.
      text = target[0]
    targets.append(target)
    predictions.append(
        task.postprocess_fn(text, example=example, is_target=False))
  scores = {}
  for metric in task.metric_fns:
    scores |= metric(targets, predictions)
  assert set(scores) == set(code(tables()[name][4]))
  for key in {"accuracy", "em", "exact_match", "rouge1"} & set(scores):
    assert scores[key] == pytest.approx(100), key


def test_the_page_lists_the_tasks_and_their_sources():
  rows = {name: row for name, row in tables().items() if len(row) == 6}
  mc4 = "mc4_<language>_span_corruption"
  assert set(rows) == {"c4_span_corruption", mc4, *NAMES}
  for name, row in rows.items():
    task = seqio.TaskRegistry.get(c4.mc4_task("sw") if name == mc4 else name)
    assert repr(task.source) == f"TfdsSource({code(row[2])[0]})"
    assert (row[5] == "here") == (name in [
        *fine_tuning.ANLI_ROUNDS, "xsum", "arc_easy", "arc_challenge",
        "winogrande_xl", "natural_questions", "web_questions", "trivia_qa"])


def test_the_page_lists_mixtures_and_bindings():
  three = [name for name, row in tables().items() if len(row) == 3]
  bindings = [name for name in three if "." in name]
  assert {"tfds_data.path", "offline.value", "t5_vocabulary.path",
          "mt5_vocabulary.path", "cache_dir.path"} <= set(bindings)
  for binding in bindings:
    gin.parse_config(f"{binding} = None")  # refuses what does not exist
  mixtures = set(three) - set(bindings)
  assert mixtures == {
      "glue", "super_glue", "anli", "fine_tuning", "mc4_span_corruption"}
  assert mixtures <= set(seqio.MixtureRegistry.names())


@pytest.mark.parametrize("name, t5s", [
    ("glue_stsb", "glue_stsb_v002"), ("glue_ax", "glue_ax_v002"),
    ("super_glue_record", "super_glue_record_v102"),
    ("super_glue_wsc_simple_eval", "super_glue_wsc_v102_simple_eval"),
    ("squad", "squad_v010_allanswers"),
    ("cnn_dailymail", "cnn_dailymail_v002")])
def test_t5s_tasks_are_t5s(name, t5s, tmp_path):
  ours, theirs = map(seqio.TaskRegistry.get, (name, t5s))
  assert ours.preprocessors == theirs.preprocessors
  assert ours.metric_fns == theirs.metric_fns
  assert ours._postprocess_fn == theirs.postprocess_fn
  with mocked_tfds(tmp_path):
    assert set(ours.splits) == set(theirs.splits)
  for feature in ("inputs", "targets"):
    # What differs: T5's vocabulary stands in a bucket.
    a, b = ours.output_features[feature], theirs.output_features[feature]
    assert a.vocabulary is vocabularies.T5
    assert (a.add_eos, a.required, a.dtype) == (b.add_eos, b.required, b.dtype)


# The tasks that T5 does not have, by hand.


def written(name, example):
  """What the steps before tokenization make of one example."""
  ds = dataset_of(example)
  for step in seqio.TaskRegistry.get(name).preprocessors:
    if getattr(step, "__name__", "") == "tokenize":
      break
    ds = step(ds)
  result, = tfds.as_numpy(ds)
  answers = [a.decode() for a in result.get("answers", [])]
  return result["inputs"].decode(), result["targets"].decode(), answers


@pytest.mark.parametrize("name, example, inputs, targets, answers", [
    ("xsum", {"document": "It rained. It pours.", "summary": "Rain."},
     "summarize: It rained. It pours.", "Rain.", []),
    ("anli_r3", {
        "uid": "a1", "label": 2, "context": "A dog sleeps.",
        "hypothesis": "A dog runs."},
     "anli hypothesis: A dog runs. premise: A dog sleeps.",
     "contradiction", []),
    ("anli_r1", {
        "uid": "a1", "label": 0, "context": "A dog runs.",
        "hypothesis": "A dog moves."},
     "anli hypothesis: A dog moves. premise: A dog runs.", "entailment", []),
    ("arc_easy", ARC,
     "arc_easy question: Which of these is a planet? "
     "choices: (A) Moon (B) Mars (C) Sun", "Mars", []),
    ("arc_challenge", ARC | {"answerKey": -1},
     "arc_challenge question: Which of these is a planet? "
     "choices: (A) Moon (B) Mars (C) Sun", "<unk>", []),
    ("winogrande_xl", {
        "sentence": "The cup fell off the shelf because the _ was small.",
        "option1": "cup", "option2": "shelf", "label": 1},
     "winogrande sentence: The cup fell off the shelf because the _ was small. "
     "option1: cup option2: shelf", "shelf", []),
    ("winogrande_xl", {
        "sentence": "_ left.", "option1": "Ann", "option2": "Bob", "label": -1},
     "winogrande sentence: _ left. option1: Ann option2: Bob", "<unk>", []),
    ("natural_questions", {
        "question": "who wrote moby dick", "answer": ["Melville", "Herman M."]},
     "nq question: who wrote moby dick", "Melville", ["Melville", "Herman M."]),
    ("web_questions", {
        "url": "u", "question": "where is nantucket?",
        "answers": ["Massachusetts", "New England"]},
     "wq question: where is nantucket?", "Massachusetts",
     ["Massachusetts", "New England"]),
    ("trivia_qa", {
        "question": "Who commands the Pequod?",
        "answer": {"value": "Ahab", "aliases": ["Captain Ahab", "Ahab"]}},
     "trivia_qa question: Who commands the Pequod?", "Ahab",
     ["Captain Ahab", "Ahab"]),
])
def test_examples_as_text(name, example, inputs, targets, answers):
  assert written(name, example) == (inputs, targets, answers)


@pytest.mark.parametrize("name, splits", [
    ("winogrande_xl", {"train": "train_xl", "validation": "validation",
                       "test": "test"}),
    # The numbers of examples that open-domain systems train on.
    ("natural_questions", {"train": "train[:79168]",
                           "validation": "train[79168:]",
                           "test": "validation"}),
    ("web_questions", {"train": "train[:3417]", "validation": "train[3417:]",
                       "test": "test"}),
    ("trivia_qa", {"train": "train[:78785]", "validation": "train[78785:]",
                   "test": "validation"})])
def test_splits_of_the_data_set(name, splits):
  source = seqio.TaskRegistry.get(name).source
  assert source._tfds_dataset._split_map == splits


def score(name, pairs):
  """The metrics of (example, model's text) pairs; a target is a text."""
  task = seqio.TaskRegistry.get(name)
  targets = [task.postprocess_fn(
      example.get("target", ""), example=example, is_target=True)
             for example, _ in pairs]
  outputs = [task.postprocess_fn(text, example=example, is_target=False)
             for example, text in pairs]
  metric, = task.metric_fns
  return metric(targets, outputs)


@pytest.mark.parametrize("name, pairs, expected", [
    ("anli_r2", [({"target": "neutral"}, "neutral"),
                 ({"target": "neutral"}, "entailment"),
                 ({"target": "entailment"}, "entail"),  # no label
                 ({"target": "contradiction"}, "contradiction")],
     {"accuracy": 50}),
    ("arc_easy", [({"target": "Mars"}, "mars"), ({"target": "Mars"}, "Moon")],
     {"accuracy": 50}),
    ("winogrande_xl", [({"target": "the cup"}, "The  cup"),
                       ({"target": "shelf"}, "cup"),
                       ({"target": "Ann"}, "Ann"), ({"target": "Bob"}, "")],
     {"accuracy": 50}),
    # Articles, case and marks do not count. "herman melville" for "melville":
    # precision 1/2, recall 1.
    ("natural_questions", [
        ({"answers": [b"The Whale", b"Moby-Dick"]}, "whale."),
        ({"answers": [b"Melville"]}, "Herman Melville")],
     {"em": 50, "f1": (100 + 200 / 3) / 2}),
    ("web_questions", [({"answers": [b"Asia"]}, "Asia"),
                       ({"answers": [b"Asia"]}, "Europe")],
     {"em": 50, "f1": 50}),
    ("trivia_qa", [({"answers": [b"Captain Ahab", b"Ahab"]}, "ahab"),
                   ({"answers": [b"Ishmael"]}, "Queequeg")],
     {"em": 50, "f1": 50}),
    # Bigrams "white whale", "whale swims" and "white whale", "whale sleeps".
    ("xsum", [({"target": "white whale swims"}, "white whale sleeps")],
     {"rouge1": 200 / 3, "rouge2": 50, "rougeLsum": 200 / 3}),
])
def test_scores(name, pairs, expected):
  assert score(name, pairs) == pytest.approx(expected)


def test_a_character_that_the_vocabulary_lacks_is_forgiven():
  # A model writes ids; what they decode to has no brace.
  compare = functools.partial(
      text_to_text.as_generated, vocabulary=vocabularies.T5)
  assert "{" not in compare("{2} Moles", is_target=True)
  ids = vocabularies.T5.encode("{2} Moles")
  assert vocabularies.T5.unk_id in ids
  assert compare(vocabularies.T5.decode(ids)) == compare(
      "{2} Moles", is_target=True)


# Mixtures.


def shares(name):
  """The share of each task in the training examples, without zeros."""
  mixture = seqio.MixtureRegistry.get(name)
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  return {name: rate / sum(rates.values())
          for name, rate in rates.items() if rate}


@pytest.mark.parametrize("name, sizes", [
    ("glue", {
        "glue_cola": 8_551, "glue_sst2": 67_349, "glue_mrpc": 3_668,
        "glue_qqp": 363_849, "glue_stsb": 5_749, "glue_mnli": 392_702,
        "glue_qnli": 104_743, "glue_rte": 2_490}),
    ("super_glue", {
        "super_glue_boolq": 9_427, "super_glue_cb": 250,
        "super_glue_copa": 400, "super_glue_multirc": 27_243,
        "super_glue_record": 138_854, "super_glue_rte": 2_490,
        "super_glue_wic": 5_428, "super_glue_wsc_simple_train": 259,
        "dpr_simple": 1_322}),
    ("anli", {"anli_r1": 16_946, "anli_r2": 45_460, "anli_r3": 100_459})])
def test_rates_are_numbers_of_examples(name, sizes, tmp_path):
  total = {"glue": 949_101, "super_glue": 185_673, "anli": 162_865}[name]
  with mocked_tfds(tmp_path, ANLI_SIZES):
    assert shares(name) == pytest.approx(
        {task: size / total for task, size in sizes.items()})


def test_fine_tuning_mixes_all(tmp_path):
  with mocked_tfds(tmp_path, ANLI_SIZES | {"squad/v1.1:3.0.0": 87_599}):
    found = shares("fine_tuning")
    # 949,101 + 185,673 - 2,490 + 162,865 + 87,599, and 8 times the mock's 4.
    assert found["squad"] == pytest.approx(87_599 / 1_382_780)
    assert found["glue_rte"] == found["super_glue_rte"] == pytest.approx(
        1_245 / 1_382_780)
    assert found["anli_r3"] == pytest.approx(100_459 / 1_382_780)
    gin.bind_parameter("rate_num_examples.maximum", 16_946)
    assert shares("fine_tuning")["anli_r3"] == shares("fine_tuning")["anli_r1"]


def test_a_mixture_yields_examples_of_mocked_tfds(tmp_path):
  with mocked_tfds(tmp_path):
    ds = seqio.MixtureRegistry.get("anli").get_dataset(
        LENGTHS, "train", shuffle=False)
    found = list(tfds.as_numpy(ds.take(3)))
  assert [sorted(example) for example in found] == [["inputs", "targets"]] * 3
