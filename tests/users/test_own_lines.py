"""Tasks of a user's own on files of lines: wrong lines, texts that are cut."""

import pytest
from helpers.runs import run, succeed

MODULE = '''
import functools

import seqio
from t5.data import preprocessors
from t5.evaluation import metrics

from tasks import vocabularies

FEATURE = seqio.Feature(vocabularies.SMALL_1K)
seqio.TaskRegistry.add(
    "NAME",
    source=seqio.TextLineDataSource(
        {"train": "FOLDER/train.tsv", "validation": "FOLDER/validation.tsv"}),
    preprocessors=[
        functools.partial(
            preprocessors.parse_tsv, field_names=["inputs", "targets"]),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim],
    output_features={"inputs": FEATURE, "targets": FEATURE},
    metric_fns=[metrics.accuracy])
'''
LONG = "the people of the United States are prosperous and free " * 3
GOOD = "one\ttwo\nthree\tfour\n" * 10


def own(folder, name, train=GOOD, validation=GOOD):
  """Flags for a task of one's own on two files of lines."""
  path = folder / f"{name}.py"
  path.write_text(
      MODULE.replace("NAME", name).replace("FOLDER", str(folder)))
  for split, text in (("train", train), ("validation", validation)):
    (folder / f"{split}.tsv").write_bytes(
        text if isinstance(text, bytes) else text.encode())
  return [f"--module_import={name}", f"--gin_param=MIXTURE_NAME = '{name}'"]


@pytest.fixture
def importable(tmp_path, monkeypatch):
  """A folder from which the run may import modules."""
  monkeypatch.syspath_prepend(tmp_path)  # a forked run has our sys.path
  return tmp_path


def train(folder, flags, how=run):
  return how(folder / "run", "--gin_file=tests/gin/tiny.gin",
             "--gin_param=train_steps = 2", "--gin_param=warmup_steps = 1",
             "--gin_param=train_then.phases = []", *flags)


@pytest.mark.parametrize("text, said", [
    ("a\tb\n\nno tab\n", "each line must have at least 2 fields, separated by "
     "a tab, and no more if the first line has no more, with "
     "file=FOLDER/train.tsv, line=2 (blank), line=3 (1 field: 'no tab'). "
     "Correct "),
    (b"a\tb\nna\xefve\tb\n", "the file must be UTF-8 text, with "
     "file=FOLDER/train.tsv, line=2, byte=3 (0xef). If ")])
def test_a_wrong_line_is_refused_before_training(text, said, importable):
  done = train(importable, own(importable, "own_wrong", text))
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith(
      f"task own_wrong: {said}".replace("FOLDER", str(importable)))
  assert not list((importable / "run").glob("model.ckpt*"))


def test_what_is_cut_is_said_in_every_mode(importable):
  # Answers that training has cut are wrong in evaluation, and the line says so.
  flags = own(importable, "own_long", f"{LONG}\tA\n{GOOD}",
              f"one\t{LONG}\n" * 3 + GOOD)
  done = train(importable, flags, succeed)
  assert "task own_long, train: 1 of 21 inputs cut at 32 tokens: set " in (
      done.stderr)
  for mode in ("eval", "perplexity_eval"):
    done = succeed(
        importable / "run", "--gin_file=tests/gin/tiny.gin",
        f"--gin_file=gin/runs/{mode}.gin", *flags,
        "--gin_param=eval_checkpoint_step = -1")
    assert ("task own_long, validation: 3 of 23 targets cut at 16 tokens: set "
            "utils.run.sequence_length = {'inputs': 32, 'targets': ") in (
                done.stderr)


def test_infer_answers_as_evaluation_does(teacher, importable):
  # Lines that are cut have the same ids, so the same answers.
  lines = [f"{word} {LONG}" for word in ("one", "two", "three", "four", "the")]
  flags = own(importable, "own_same",
              validation="".join(f"{line}\tA\n" for line in lines))
  same = [f"--gin_file={teacher}/operative_config.gin", *flags,
          "--gin_param=drop_nothing.value = True"]
  succeed(teacher, *same, "--gin_file=gin/runs/eval.gin",
          "--gin_param=eval_checkpoint_step = -1",
          "--gin_param=eval_batch_size = 4")
  evaluated, = (teacher / "validation_eval").glob("own_same_*_predictions")
  (importable / "in.txt").write_text("\n".join(lines))
  succeed(teacher, *same, "--gin_file=gin/runs/infer.gin",
          "--gin_param=batch_size = 4",
          f"--gin_param=input_filename = '{importable}/in.txt'",
          f"--gin_param=output_filename = '{importable}/out'")
  inferred, = importable.glob("out-*")
  answers = inferred.read_text()
  assert answers == evaluated.read_text() and len(answers.splitlines()) == 5
