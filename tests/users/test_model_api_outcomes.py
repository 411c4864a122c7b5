"""The model API says what it did, as T5's command does."""

import json
import shutil

import pytest
from helpers.runs import run, succeed

MODULE = '''
import functools

import seqio
from t5.data import preprocessors
from t5.evaluation import metrics

from tasks import vocabularies

for name, fns in (("own_answers", [metrics.accuracy]), ("own_texts", [])):
  seqio.TaskRegistry.add(
      name, source=seqio.TextLineDataSource({"test": "FOLDER/test.tsv"}),
      preprocessors=[
          functools.partial(
              preprocessors.parse_tsv, field_names=["inputs", "targets"]),
          seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features={name: seqio.Feature(vocabularies.SMALL_1K)
                       for name in ("inputs", "targets")}, metric_fns=fns)
'''


@pytest.fixture
def own(teacher, tmp_path, monkeypatch):
  """Flags of the model API on a copy of a trained model, with own tasks."""
  model_dir = shutil.copytree(teacher, tmp_path / "trained")
  monkeypatch.syspath_prepend(tmp_path)  # a forked run has our sys.path
  (tmp_path / "test.tsv").write_text("the sea\tthe\nthe ship\tof\n")
  (tmp_path / "own_answers.py").write_text(
      MODULE.replace("FOLDER", str(tmp_path)))
  return [model_dir, "--use_model_api", "--module_import=own_answers",
          f"--gin_file={model_dir}/operative_config.gin", "--batch_size=2",
          "--input_sequence_length=32", "--target_sequence_length=16"]


def test_an_evaluation_is_printed_and_recorded(own):
  done = succeed(*own, "--mode=eval", "--mixture_or_task=own_answers",
                 "--eval_split=test")
  assert "own_answers | test | step 20 | accuracy 0.0000" in done.stdout
  lines = (own[0] / "metrics.jsonl").read_text().splitlines()
  record = json.loads(lines[-1])
  assert [record[key] for key in (
      "kind", "name", "step", "split", "examples", "accuracy")] == [
          "task_metrics", "own_answers", 20, "test", 2, 0.0]
  assert json.loads((own[0] / "best.json").read_text())["test"][
      "own_answers"]["step"] == 20


def test_nothing_to_evaluate_and_nothing_to_train(own):
  for flags, said in (
      (["--mode=eval", "--mixture_or_task=own_answers", "--eval_split=tst"],
       "task=own_answers, split=tst, splits there=test, nearest: test. Set "
       "--eval_split to one of test."),
      (["--mode=eval", "--mixture_or_task=own_texts", "--eval_split=test"],
       "split=test, tasks without metric_fns=own_texts. Give the task"),
      (["--mode=train", "--train_steps=20",
        "--mixture_or_task=public_domain_span_corruption_1k"],
       "with train_steps=20, last step=20, ")):
    done = run(*own, *flags)
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
