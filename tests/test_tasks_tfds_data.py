"""Published data sets: found, fetched, or an error that says what to do."""

from unittest import mock

import gin
import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds
from helpers.mocked_tfds import no_network, store

from tasks import tfds_data, vocabularies

COLA = "glue/cola:2.0.0"
LENGTHS = {"inputs": 32, "targets": 8}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
  """An empty data directory in the environment, and no bindings."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  yield tmp_path / "tfds"
  gin.clear_config()


def store_cola(directory):
  example = {"sentence": "The sea is calm.", "label": 1, "idx": 7}
  store(COLA, {
      "sentence": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=["unacceptable", "acceptable"]),
      "idx": tfds.features.Scalar(np.int32),
  }, {"train": [example] * 2, "validation": [example]}, directory)


def read(name="glue_cola", split="train"):
  return list(tfds.as_numpy(seqio.get_mixture_or_task(name).get_dataset(
      LENGTHS, split, shuffle=False, num_epochs=1)))


def go_offline():
  gin.bind_parameter("offline.value", True)


def test_what_is_there_is_read_without_the_network(data):
  store_cola(data)
  go_offline()
  with no_network():
    examples = read()
  assert len(examples) == 2
  assert examples[0]["inputs_pretokenized"] == (
      b"cola sentence: The sea is calm.")
  assert examples[0]["targets_pretokenized"] == b"acceptable"
  task = seqio.TaskRegistry.get("glue_cola")
  assert set(task.splits) == {"train", "validation"}
  assert task.num_input_examples("train") == 2


def message(data, data_set, where, offline=True):
  folder = data_set.replace(":", "/")
  return (
      "tfds_data: the data set must be on this machine, with offline.value="
      f"{offline}, data set={data_set}, looked for in={data}/{folder}. {where} "
      f"Copy DIR/{folder} to where it was looked for, or set tfds_data.path to "
      f"the directory that holds {folder}.")


@pytest.mark.parametrize("name, data_set", [
    ("glue_cola", "glue/cola:2.0.0"), ("squad", "squad/v1.1:3.0.0"),
    ("xsum", "xsum:1.1.0"),
    ("mc4_sw_span_corruption", "c4/multilingual:3.1.0")])
def test_what_is_not_there_says_what_to_do(data, name, data_set):
  go_offline()
  gin.bind_parameter("mt5_vocabulary.path", vocabularies.T5_MODEL)
  with no_network(), pytest.raises(ValueError) as error:
    read(name)
  assert str(error.value) == message(data, data_set, (
      "Where there is a network, run: tfds build "
      f"{data_set} --data_dir=DIR."))


@pytest.mark.parametrize("offline", [True, False])
def test_what_tfds_cannot_prepare_says_so(data, offline):
  gin.bind_parameter("offline.value", offline)
  with no_network(), pytest.raises(ValueError) as error:
    read("c4_span_corruption")
  assert str(error.value) == message(data, "c4/en:2.2.0", (
      f"TFDS {tfds.__version__} reads this version and prepares 3.1.0 only: "
      "find a data directory DIR in which an older TFDS prepared it."), offline)


def test_tfds_prepares_every_other_data_set():
  mixtures = map(seqio.MixtureRegistry.get,
                 ["fine_tuning", "mc4_span_corruption"])
  for name in {task.source.name for mixture in mixtures
               for task in mixture.tasks}:
    builder = tfds.builder(name, data_dir="/no/such/directory")
    # As TFDS checks before it downloads.
    assert builder.version == builder.canonical_version, name


@pytest.mark.parametrize("name", ["fine_tuning", "glue", "anli"])
def test_a_mixture_misses_a_data_set_before_it_reads_another(data, name):
  store_cola(data)
  go_offline()
  with no_network(), mock.patch.object(
      seqio.LazyTfdsLoader, "load", side_effect=AssertionError("read")):
    with pytest.raises(ValueError, match="tfds_data: the data set must be on"):
      read(name)


def test_a_half_copied_data_set_is_not_there(data):
  store_cola(data)
  (data / "glue/cola/2.0.0/dataset_info.json").unlink()
  go_offline()
  with pytest.raises(ValueError, match="data set=glue/cola:2.0.0"):
    read()


def test_a_bucket_is_another_machine():
  go_offline()
  gin.bind_parameter("tfds_data.path", "gs://bucket/tfds")
  with no_network(), pytest.raises(ValueError, match=(
      "looked for in=gs://bucket/tfds/glue/cola/2.0.0. Where")):
    read()


def test_data_directory_is_bound(tmp_path):
  store_cola(tmp_path / "bound")
  go_offline()
  gin.bind_parameter("tfds_data.path", str(tmp_path / "bound"))
  assert len(read()) == 2


def test_t5s_flag_goes_before_the_binding(tmp_path):
  store_cola(tmp_path / "flag")
  go_offline()
  gin.bind_parameter("tfds_data.path", str(tmp_path / "bound"))
  seqio.set_tfds_data_dir_override(str(tmp_path / "flag"))
  try:
    assert len(read(split="validation")) == 1
  finally:
    seqio.set_tfds_data_dir_override(None)


def test_online_a_missing_data_set_is_prepared_once(data, capsys):
  prepared = []

  def builder(name, data_dir):
    prepared.append((name, data_dir))
    return mock.Mock(download_and_prepare=lambda: store_cola(data_dir))

  with mock.patch.object(tfds_data.tfds, "builder", builder):
    assert tfds_data.ready_dir(COLA) == str(data)
    assert tfds_data.ready_dir(COLA) == str(data)
  assert prepared == [(COLA, str(data))]
  assert capsys.readouterr().err.startswith(
      f"{COLA}: TFDS downloads and prepares it in {data}\n")


def test_registering_asks_for_nothing():
  with no_network(), mock.patch.object(
      tfds_data, "_is_complete", side_effect=AssertionError("looked")):
    source = tfds_data.TfdsSource(COLA)
    task = seqio.Task(
        "task", source=source, preprocessors=[],
        output_features=seqio.TaskRegistry.get("glue_cola").output_features)
    seqio.Mixture("mixture", [task], default_rate=1)
    assert repr(source) == f"TfdsSource({COLA})"
    with pytest.raises(AssertionError, match="looked"):
      _ = task.splits


# Vocabularies.


def unread_mt5():
  """As `vocabularies.MT5` is until a test of this process has read a file."""
  return vocabularies.BoundVocabulary(
      vocabularies.mt5_vocabulary, vocabularies.MT5_IDS)


def test_mt5_vocabulary_must_be_provided():
  with no_network(), pytest.raises(ValueError, match=(
      "mt5_vocabulary: the vocabulary must be a file on this machine, with "
      "path=None, offline.value=False. Set mt5_vocabulary.path to mT5's "
      "sentencepiece model, 250,100 pieces, published as gs://t5-data/vocabs/"
      "mc4.250000.100extra/sentencepiece.model.")):
    unread_mt5().encode("text")


def test_a_model_can_be_planned_without_mt5s_file():
  assert unread_mt5().vocab_size == 250_100
  gin.bind_parameter("mt5_vocabulary.path", "/no/such.model")
  with pytest.raises(ValueError, match="mt5_vocabulary: .*path='/no/such"):
    _ = unread_mt5().vocab_size


def test_a_vocabulary_in_a_bucket_needs_the_network():
  bucket = "gs://bucket/spiece.model"
  gin.bind_parameter("t5_vocabulary.path", bucket)
  assert vocabularies.t5_vocabulary().path == bucket
  go_offline()
  with pytest.raises(ValueError, match=(
      f"t5_vocabulary: .* path='{bucket}', offline.value=True. Set "
      "t5_vocabulary.path to a sentencepiece model.")):
    vocabularies.t5_vocabulary()


@pytest.mark.parametrize("name, size", [
    ("t5_vocabulary", 1100), ("mt5_vocabulary", 1000)])
def test_vocabulary_is_bound_before_it_is_first_used(name, size):
  vocabulary = vocabularies.BoundVocabulary(getattr(vocabularies, name))
  gin.bind_parameter(f"{name}.path", vocabularies.small_model(1))
  # mT5's file holds its sentinels; to T5's 100 are added.
  assert vocabulary.vocab_size == size


def test_sentinels_are_added_as_bound():
  vocabulary = vocabularies.BoundVocabulary(vocabularies.mt5_vocabulary)
  gin.bind_parameter("mt5_vocabulary.path", vocabularies.small_model(1))
  gin.bind_parameter("mt5_vocabulary.extra_ids", 100)
  assert vocabulary.encode("<extra_id_0>") == [1099]
  assert vocabulary.extra_ids == 100
