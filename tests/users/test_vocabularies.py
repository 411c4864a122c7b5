"""Vocabularies: one binding for all, T5's ids, what is unknown."""

import pytest
from helpers.runs import run, succeed

import tasks  # noqa: F401
from tasks import vocabularies

RUSSIAN = ("Все люди рождаются свободными и равными в своем достоинстве и "
           "правах. Они наделены разумом и совестью.")
SMALL = vocabularies.small_model(1)


def flags(text, *params):
  return ["--gin_file=tests/gin/tiny.gin",
          *(f"--gin_param={param}" for param in (
              "MIXTURE_NAME = 'local_text_span_corruption'",
              f"local_text.path = '{text}'", "train_steps = 2",
              "warmup_steps = 1", "train_then.phases = []", *params))]


@pytest.fixture
def text(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("\n\n".join(
      f"{number} {RUSSIAN} " * 8 for number in range(20)))
  return path


def test_one_binding_holds_for_own_text_which_is_unknown(text, tmp_path):
  done = succeed(
      tmp_path / "run", *flags(text, f"t5_vocabulary.path = '{SMALL}'"))
  assert "task local_text_span_corruption, train: " in done.stderr
  assert f"% of the pieces of targets are unknown to {SMALL}: " in done.stderr
  done = succeed(  # the same text is as unknown when it is decoded
      tmp_path / "run", f"--gin_file={tmp_path}/run/operative_config.gin",
      "--gin_file=gin/runs/infer.gin", "--gin_param=batch_size = 4",
      f"--gin_param=input_filename = '{text}'",
      f"--gin_param=output_filename = '{tmp_path}/out'")
  assert f"{text}: " in done.stderr
  assert f"% of the pieces of inputs are unknown to {SMALL}: " in done.stderr


def test_other_ids_are_refused(text, tmp_path):
  import sentencepiece
  sentencepiece.SentencePieceTrainer.train(
      input=str(text), model_prefix=f"{tmp_path}/own", vocab_size=60,
      hard_vocab_limit=False, minloglevel=2)
  done = run(tmp_path / "run", *flags(
      text, f"t5_vocabulary.path = '{tmp_path}/own.model'"))
  assert done.returncode == 1
  said = done.stderr.strip().splitlines()[-1]
  assert said.startswith("vocabulary: id 0 must be padding and id 1 the end of")
  assert "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1" in said
  assert not list((tmp_path / "run").glob("model.ckpt*"))
