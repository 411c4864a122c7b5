"""A vocabulary has T5's ids; what it does not know is counted."""

import gin
import pytest
import sentencepiece
import seqio

import tasks  # noqa: F401
from switch_mtf.upstream import vocabulary_ids
from tasks import local_text, vocabularies


def trained(folder, **ids):
  """The path of a sentencepiece model of a few pieces."""
  text = folder / "text.txt"
  text.write_text("the people of the United States\n" * 50)
  sentencepiece.SentencePieceTrainer.train(
      input=str(text), model_prefix=f"{folder}/own", vocab_size=24,
      hard_vocab_limit=False, minloglevel=2, **ids)
  return f"{folder}/own.model"


def test_sentencepiece_defaults_are_refused(tmp_path):
  own = seqio.SentencePieceVocabulary(trained(tmp_path), extra_ids=100)
  for _ in range(2):  # not only at the first time
    with pytest.raises(ValueError, match=(
        "vocabulary: id 0 must be padding and id 1 the end of sequence, with "
        f"file={tmp_path}/own.model, pad_id=-1, eos_id=2, unk_id=0, bos_id=1. "
        "Train the sentencepiece model again with --pad_id=0 --eos_id=1 "
        "--unk_id=2 --bos_id=-1.")):
      _ = own.vocab_size


@pytest.mark.parametrize("ids", [
    dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    dict(pad_id=0, eos_id=1, unk_id=2, bos_id=3)])
def test_ids_of_t5_are_legal(ids, tmp_path):
  own = seqio.SentencePieceVocabulary(trained(tmp_path, **ids), extra_ids=9)
  assert own.decode(own.encode("the people")) == "the people"


@pytest.mark.parametrize("name", ["T5", "SMALL_1K", "MULTILINGUAL_4K"])
def test_vocabularies_of_the_tasks_are_legal(name):
  assert getattr(vocabularies, name).vocab_size > 1000


@pytest.mark.parametrize("content", [b"no model\n", b"", None])
def test_a_file_that_is_no_model_is_named(content, tmp_path):
  path = tmp_path / "x.model"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=(
      f"vocabulary: the file must be a sentencepiece model, with file={path}, "
      "error=.*. Set t5_vocabulary.path, or the task's vocabulary")):
    _ = seqio.SentencePieceVocabulary(str(path)).vocab_size


def test_local_text_has_the_vocabulary_of_all_tasks(clean_gin):
  gin.bind_parameter("t5_vocabulary.path", vocabularies.small_model(4))
  assert local_text.LocalVocabulary().vocab_size == 4100
  gin.bind_parameter("local_text.vocabulary", vocabularies.small_model(1))
  assert local_text.LocalVocabulary().vocab_size == 1100


def test_unknown_pieces_are_counted():
  unknown = vocabulary_ids.Unknown()
  small = vocabularies.SMALL_1K
  # 1 of 50 inputs, 1 of 200 targets; padding does not count.
  unknown.count("inputs", small, [small.unk_id, 0, 0, 0])
  unknown.count("inputs", small, [5] * 49)
  unknown.count("targets", small, [small.unk_id] + [5] * 199)
  unknown.count("other", seqio.PassThroughVocabulary(9), [2])
  line, = unknown.lines()
  assert line.startswith("2.0 % of the pieces of inputs are unknown to ")
  assert "public_domain_1k.model" in line
