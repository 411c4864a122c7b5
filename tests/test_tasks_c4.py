"""C4 and mC4: T5's examples, mT5's languages and rates."""

import gin
import numpy as np
import pytest
import seqio
import t5.data.tasks  # noqa: F401  (registers T5's own tasks)
import tensorflow_datasets as tfds
from helpers.graphs import ROOT
from helpers.mocked_tfds import mocked_tfds, no_network, store

from tasks import c4, vocabularies

LENGTHS = {"inputs": 24, "targets": 16}
ENGLISH = ["Call me Ishmael. Some years ago, never mind how long precisely, "
           f"I thought I would sail about a little, said number {i}."
           for i in range(20)]
TEXT = {"text": tfds.features.Text()}


@pytest.fixture(autouse=True)
def bound(tmp_path):
  """A data directory; T5's vocabulary for want of mT5's."""
  gin.bind_parameter("tfds_data.path", str(tmp_path))
  gin.bind_parameter("offline.value", True)
  gin.bind_parameter("mt5_vocabulary.path", vocabularies.T5_MODEL)
  gin.bind_parameter("mt5_vocabulary.extra_ids", vocabularies.EXTRA_IDS)
  yield
  gin.clear_config()


def examples(task, split="train"):
  return list(tfds.as_numpy(task.get_dataset(
      LENGTHS, split, shuffle=False, seed=3)))


def test_examples_equal_those_of_t5s_c4(tmp_path):
  store(c4.C4, TEXT, {"train": [{"text": t} for t in ENGLISH],
                      "validation": [{"text": ENGLISH[0]}]}, tmp_path)
  ours = seqio.TaskRegistry.get("c4_span_corruption")
  theirs = seqio.Task(
      "theirs", source=ours.source, output_features=ours.output_features,
      preprocessors=seqio.TaskRegistry.get(
          "c4_v220_span_corruption").preprocessors)
  with no_network():
    found, expected = examples(ours), examples(theirs)
  assert len(found) == len(expected) > 10
  for a, b in zip(found, expected, strict=True):
    for name in ("inputs", "targets"):
      np.testing.assert_array_equal(a[name], b[name])
      assert a[name][-1] == vocabularies.T5.eos_id
      assert len(a[name]) <= LENGTHS[name]
  assert ours.source.tfds_dataset.name == seqio.TaskRegistry.get(
      "c4_v220_span_corruption").source.tfds_dataset.name
  assert ours.output_features["targets"].vocabulary is vocabularies.T5


def test_c4_yields_batches_of_mocked_tfds(tmp_path):
  with mocked_tfds(tmp_path):
    example, *_ = examples(seqio.TaskRegistry.get("c4_span_corruption"))
  assert example["inputs"].max() == example["targets"].max() == 32099


def test_a_language_reads_its_own_splits(tmp_path):
  def pages(*words):
    return [{"text": " ".join([word] * 9)} for word in words]

  store(c4.MC4, TEXT, {
      "bg-Latn": pages("more", "nebe"), "bg-Latn-validation": pages("voda"),
      "sw": pages("bahari"), "sw-validation": pages("maji")}, tmp_path)

  def words(name, split):
    task = seqio.TaskRegistry.get(name)
    found = set()
    for example in examples(task, split):
      text = vocabularies.T5.decode(
          [*example["inputs"], *example["targets"]])
      found |= {w for w in ("more", "nebe", "voda", "bahari", "maji")
                if w in text}
    return found

  with no_network():
    assert words("mc4_bg_Latn_span_corruption", "train") == {"more", "nebe"}
    assert words("mc4_bg_Latn_span_corruption", "validation") == {"voda"}
    assert words("mc4_sw_span_corruption", "train") == {"bahari"}
    task = seqio.TaskRegistry.get("mc4_bg_Latn_span_corruption")
    assert task.num_input_examples("train") == 2
    # 2 ** 0.3
    assert c4.mc4_rate(task) == pytest.approx(1.2311444)


def test_languages_are_those_of_the_paper():
  # Figure 7 has 107 labels: 101 languages and 6 of them in Latin script.
  languages = list(c4.MC4_LANGUAGES)
  assert len(languages) == len(set(languages)) == 107
  assert sum(language.endswith("-Latn") for language in languages) == 6
  assert {"en", "zh", "iw", "yi", "gd", "haw", "hmn"} <= set(languages)
  mixture = seqio.MixtureRegistry.get("mc4_span_corruption")
  assert {task.name for task in mixture.tasks} == {
      c4.mc4_task(language) for language in languages}
  for task in mixture.tasks:
    assert task.output_features["targets"].vocabulary is vocabularies.MT5


class Language:
  """What a rate function asks a task for."""

  cache_dir = None

  def __init__(self, name, pages):
    self.name, self._pages = name, pages

  def num_input_examples(self, split):
    assert split == "train"
    return self._pages


@pytest.mark.parametrize("alpha, ratio", [
    # English has 100 times the pages: 100 ** 0.3, 100 and 1 times the rate.
    (None, 3.9810717), (1, 100), (0, 1)])
def test_languages_are_drawn_by_temperature(alpha, ratio):
  if alpha is not None:
    gin.bind_parameter("mc4_rate.alpha", alpha)
  large, small = Language("en", 3_000_000), Language("yi", 30_000)
  assert c4.mc4_rate(large) / c4.mc4_rate(small) == pytest.approx(ratio)


def test_alpha_out_of_range():
  gin.bind_parameter("mc4_rate.alpha", 3.3)
  with pytest.raises(ValueError, match=(
      "mc4_rate: alpha must be from 0 to 1, with alpha=3.3. Set "
      "mc4_rate.alpha = 0.3")):
    c4.mc4_rate(Language("en", 1))


def test_the_page_tells_what_mc4_needs():
  page = (ROOT / "docs/tasks.md").read_text()
  assert f"`{c4.C4}`" in page
  assert f"`{c4.MC4}`" in page
  for line in ("mc4_rate.alpha", "mt5_vocabulary.path", "tfds_data.path"):
    assert line in page
