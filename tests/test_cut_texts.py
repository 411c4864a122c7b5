"""How many texts of a task are longer than the lengths."""

import pytest
import seqio
from mesh_tensorflow.transformer import utils
from t5.models import mesh_transformer

from switch_mtf.upstream import cut_texts
from tasks import vocabularies

VOCABULARY = vocabularies.SMALL_1K
LONG = "the people of the United States are prosperous and free"
PAIRS = [("a", "b"), ("a", LONG), (LONG, "b"), ("", ""), (LONG, LONG)]
LENGTHS = {"inputs": 12, "targets": 6}
SIZE = len(VOCABULARY.encode(LONG)) + 1


@pytest.fixture
def task(tmp_path, monkeypatch):
  """A task of `PAIRS`; nothing has been said of it."""
  from t5.data import preprocessors
  monkeypatch.setattr(cut_texts, "_said", set())
  (tmp_path / "x.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS))
  made = seqio.Task(
      "my_pairs", seqio.TextLineDataSource(
          {name: f"{tmp_path}/x.tsv" for name in ("train", "validation")}),
      {"inputs": seqio.Feature(VOCABULARY),
       "targets": seqio.Feature(VOCABULARY)}, [
           preprocessors.parse_tsv, seqio.preprocessors.tokenize,
           seqio.CacheDatasetPlaceholder(),
           seqio.preprocessors.append_eos_after_trim],
      metric_fns=[lambda targets, predictions: {}])
  monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {"my_pairs": made})
  return made


def test_what_is_cut_is_said_once(task, capsys):
  assert SIZE > 12
  room = {name: -(-SIZE // size) * size for name, size in LENGTHS.items()}
  for _ in range(2):
    task.get_dataset(LENGTHS, split="validation")
  assert capsys.readouterr().err == (
      "task my_pairs, validation: 2 of 5 inputs cut at 12 tokens and 2 of 5 "
      "targets cut at 6 tokens: set utils.run.sequence_length = "
      f"{room} to keep them whole.\n")
  task.get_dataset({"inputs": SIZE, "targets": 6}, split="train")
  assert capsys.readouterr().err.startswith(
      "task my_pairs, train: 2 of 5 targets cut at 6 tokens: set ")


@pytest.mark.parametrize("lengths", [
    None, {"inputs": SIZE, "targets": SIZE}, {"inputs": SIZE}])
def test_nothing_is_said_where_nothing_is_cut(lengths, task, capsys):
  task.get_dataset(lengths, split="validation")
  assert not capsys.readouterr().err


def test_only_the_first_examples_are_counted(task, capsys, monkeypatch):
  monkeypatch.setattr(cut_texts, "MOST_TRAINING", 2)
  task.get_dataset(LENGTHS, split="train")
  assert "1 of the first 2 targets cut at 6 tokens: " in (
      capsys.readouterr().err)


def test_span_corruption_is_cut_by_design(capsys, monkeypatch):
  monkeypatch.setattr(cut_texts, "_said", set())
  seqio.get_mixture_or_task("public_domain_span_corruption_1k").get_dataset(
      LENGTHS, split="validation")
  assert not capsys.readouterr().err


def test_training_and_evaluation_say_it(task, capsys):
  mesh_transformer.mesh_train_dataset_fn("my_pairs", LENGTHS)
  assert "task my_pairs, train: " in capsys.readouterr().err
  evaluated, = mesh_transformer.mesh_eval_dataset_fn(
      "my_pairs", LENGTHS, "validation")
  evaluated.dataset_fn()
  assert "task my_pairs, validation: " in capsys.readouterr().err


def score(lengths):
  """Scores the task without a model: reads it only."""
  def estimate(estimator, input_fn, *args, **kwargs):
    input_fn({})
    return "scored"

  return utils.score_from_dataset(
      None, VOCABULARY, 2, lengths, "model_dir", 1, "validation",
      score_dataset_fn=lambda **kwargs: mesh_transformer.mesh_eval_dataset_fn(
          "my_pairs", **kwargs),
      score_postprocess_fn=None, score_with_estimator_fn=estimate)


def test_scoring_refuses_to_cut_targets(task, capsys):
  for _ in range(2):
    with pytest.raises(ValueError, match=(
        "^score: every target must fit into the length, .* with task=my_pairs, "
        f"split=validation, targets too long=2 of 5, tokens={SIZE} at most, "
        "length=6. Set utils.run.sequence_length = ")):
      score(LENGTHS)
  assert score(LENGTHS | {"targets": SIZE}) == "scored"
  assert "2 of 5 inputs cut at 12 tokens" in capsys.readouterr().err
