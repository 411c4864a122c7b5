"""Lines that are decoded or scored: their ids, their number, their files."""

import functools

import gin
import numpy as np
import pytest
import seqio
import tensorflow.compat.v1 as tf
import tensorflow_datasets as tfds
from mesh_tensorflow.transformer import dataset, utils

from switch_mtf.upstream import infer_and_score
from switch_mtf.upstream.text_files import Lines
from tasks import vocabularies

VOCABULARY = vocabularies.SMALL_1K
OTHER = vocabularies.SMALL_4K
TEXTS = ["The state of the <extra_id_0> is strong, and the people are free.",
         "Call me <extra_id_0>.", "", "A\u2028B", "C\0D", " two  spaces ",
         "<extra_id_0> at the start<extra_id_1>", "na\u00efve \u0416",
         "x" * 999]


def encode(lines, length=10, vocabulary=VOCABULARY, model_type="bitransformer",
           batch_size=1, **options):
  return utils.encode_inputs(
      lines, vocabulary, model_type, batch_size, length, **options)


def append_eos_after_trim(examples, features, length):
  return seqio.preprocessors.append_eos_after_trim(
      examples, features, {"inputs": length})


def append_eos(examples, features, length):
  return seqio.preprocessors.append_eos(examples, features)


@pytest.mark.parametrize("length", [4, 10, 64])
@pytest.mark.parametrize("append", [append_eos, append_eos_after_trim])
def test_a_text_has_the_ids_of_evaluation(length, append):
  # The steps of T5's tasks, and what evaluation does after them.
  features = {"inputs": seqio.Feature(VOCABULARY)}
  examples = tf.data.Dataset.from_tensor_slices({"inputs": TEXTS})
  examples = append(
      seqio.preprocessors.tokenize(examples, features, copy_pretokenized=False),
      features, length)
  examples = dataset.pack_or_pad(
      examples, {"inputs": length}, pack=False, feature_keys=["inputs"],
      ensure_eos=["inputs"])
  right = [x["inputs"] for x in tfds.as_numpy(examples)]
  np.testing.assert_array_equal(encode(TEXTS, length), right)


def test_what_is_cut_is_said(capsys):
  encode(Lines(TEXTS, path="in.txt"))
  long = [len(VOCABULARY.encode(t)) + 1 for t in TEXTS]
  cut = sum(n > 10 for n in long)
  longest = max(long)
  assert 1 < cut < len(TEXTS)
  assert capsys.readouterr().err == (
      f"in.txt: {cut} of {len(TEXTS)} lines cut at 10 tokens: set "
      "utils.run.sequence_length = {'inputs': "
      f"{-(-longest // 10) * 10}}} to keep them whole (the longest has "
      f"{longest:,}).\n")


def test_what_fits_exactly_is_not_cut(capsys):
  text = "Call me <extra_id_0>."
  length = len(VOCABULARY.encode(text)) + 1
  ids = encode([text], length)
  assert ids[0, -1] == 1 and (ids[0, :-1] > 1).all()
  assert not capsys.readouterr().err


def test_batches_are_filled_with_the_first_line():
  ids = encode(["A", "B", "C"], batch_size=4)
  assert ids.shape == (4, 10) and ids.dtype == np.int32
  np.testing.assert_array_equal(ids[3], ids[0])


def test_targets_have_their_own_vocabulary():
  both = (VOCABULARY, OTHER)
  inputs, targets = (
      encode(Lines(["the strong people"], feature), vocabulary=both)[0]
      for feature in ("inputs", "targets"))
  assert list(inputs[inputs > 1]) == VOCABULARY.encode("the strong people")
  assert list(targets[targets > 1]) == OTHER.encode("the strong people")


def test_long_targets_are_refused():
  lines = Lines(["A", "the people of the United States are free and strong",
                 "", "x" * 40], "targets", "t.txt", "targets_filename")
  sizes = [len(VOCABULARY.encode(lines[i])) + 1 for i in (1, 3)]
  with pytest.raises(ValueError, match=(
      "^score: every target must fit into the length, .* with "
      f"targets_filename=t.txt, lines=2, 4, tokens={sizes[0]}, {sizes[1]}, "
      r"length=10. Set utils.run.sequence_length = \{'targets': "
      rf"{-(-max(sizes) // 10) * 10}\}}, or shorten the lines.")):
    encode(lines)


def test_without_its_end_a_target_may_be_longer():
  text = "the people of"
  length = len(VOCABULARY.encode(text))
  targets = Lines([text], "targets")
  assert list(encode(targets, length, eos_id=0)[0]) == VOCABULARY.encode(text)
  with pytest.raises(ValueError, match=f"tokens={length + 1}, length={length}"):
    encode(targets, length)


def test_a_language_model_goes_on():
  prompt, text = "the people", "of the states"
  ids = encode([prompt], model_type="lm")[0]
  assert list(ids[ids > 0]) == VOCABULARY.encode(prompt)
  ids = encode(Lines([text], "targets"), model_type="lm",
               unscored_prefix=[prompt])[0]
  assert list(ids[ids < 0]) == [-i for i in VOCABULARY.encode(prompt)]
  assert list(ids[ids > 0]) == [*VOCABULARY.encode(text), 1]
  assert encode([""], model_type="lm").tolist() == [[0] * 10]


def test_a_language_model_scores_after_the_whole_prompt():
  with pytest.raises(ValueError, match=(
      "^score: every target, with the inputs it continues, must fit into ")):
    encode(Lines(["of the states"], "targets"), model_type="lm",
           unscored_prefix=["x" * 40])


def test_a_long_prompt_is_cut_without_an_end(capsys):
  ids = encode(["x" * 40], model_type="lm")[0]
  assert list(ids) == VOCABULARY.encode("x" * 40)[:10]
  assert "1 of 1 lines cut at 10 tokens" in capsys.readouterr().err


def test_a_task_without_an_end_has_none(clean_gin):
  if "endless_lines" not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
        "endless_lines", source=seqio.TextLineDataSource({"train": "x"}),
        output_features={"inputs": seqio.Feature(VOCABULARY, add_eos=False),
                         "targets": seqio.Feature(VOCABULARY)})
  gin.parse_config("MIXTURE_NAME = 'endless_lines'")
  assert not encode(["A"]).tolist()[0].count(1)
  assert encode(Lines(["A"], "targets")).tolist()[0].count(1)


# Pairs of inputs and targets.


def pair(inputs, targets, model_type="bitransformer"):
  return infer_and_score.paired(
      inputs and Lines("abcdef"[:inputs], "inputs", "in.txt"),
      Lines("uvwxyz"[:targets], "targets", "t.txt"), model_type)


@pytest.mark.parametrize("inputs, targets, more", [
    (3, 4, r"1. Correct the files. An empty"), (4, 3, "Correct the files. An "),
    (2, 4, "Correct the files, or, if each input has 2 targets in a row, set "
     "targets_per_input.value = 2. An empty line counts."),
    (4, 1, "Correct the files. An "), (1, 3, "targets_per_input.value = 3")])
def test_unequal_numbers_are_refused(inputs, targets, more, clean_gin):
  with pytest.raises(ValueError, match=(
      "^score: each line of inputs must have a line of targets, with "
      rf"inputs={inputs} \(in.txt\), targets={targets} \(t.txt\), .*{more}")):
    pair(inputs, targets)


def test_equal_numbers_are_paired(clean_gin):
  inputs, targets = pair(3, 3)
  assert inputs == ["a", "b", "c"] and targets == ["u", "v", "w"]
  assert inputs.path == "in.txt" and targets.feature == "targets"


def test_several_targets_an_input(clean_gin):
  gin.parse_config("targets_per_input.value = 2")
  assert pair(2, 4)[0] == ["a", "a", "b", "b"]
  with pytest.raises(ValueError, match="must have 2 lines of targets, "):
    pair(3, 3)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_how_many_targets(value):
  with pytest.raises(ValueError, match="^targets_per_input: value must be a "):
    infer_and_score.targets_per_input(value)


def test_inputs_are_needed(clean_gin):
  assert pair(None, 2, "lm")[0] is None
  with pytest.raises(ValueError, match="^score: there must be inputs for a "):
    pair(None, 2)
  with pytest.raises(ValueError, match="^score: there must be lines to score"):
    pair(2, 0)


def score(inputs, targets, **options):
  """What reaches upstream's scoring: the number of examples, or an error."""
  return utils.score_from_strings(
      None, VOCABULARY, "bitransformer", 2, {"inputs": 8, "targets": 8},
      "model_dir", 1, inputs=inputs, targets=targets,
      score_with_estimator_fn=lambda *args: args[-1], **options)


def test_scores_of_lists_and_files(clean_gin, tmp_path):
  (tmp_path / "in").write_text("a\n\nc\n")
  files = functools.partial(utils.save_scores, scores_filename=f"{tmp_path}/o")
  assert score(["a", "b"], ["A", ""], score_postprocess_fn=files) == 2
  assert score(f"{tmp_path}/in", ["A", "B", ""],
               score_postprocess_fn=files) == 3
  files = functools.partial(utils.save_scores, scores_filename=f"{tmp_path}/t")
  (tmp_path / "t.targets").write_text("A\n")
  with pytest.raises(ValueError, match="^score: results must not replace"):
    score(["a"], f"{tmp_path}/t.targets", score_postprocess_fn=files)
  with pytest.raises(ValueError, match="^score: targets_filename must be a"):
    score(["a"], f"{tmp_path}/none", score_postprocess_fn=files)


def test_long_targets_are_refused_with_all_lengths(clean_gin):
  with pytest.raises(ValueError, match=(
      r"line=2, .* Set utils.run.sequence_length = \{'inputs': 8, "
      r"'targets': \d+\}, or shorten the line.")):
    score(["a", "b"], ["A", "x" * 20], score_postprocess_fn=None)


# What decoding writes.


def test_the_output_is_not_the_input(clean_gin, tmp_path):
  (tmp_path / "lines-7").write_text("A\n")
  (tmp_path / "model.ckpt-7.index").write_text("")
  check = functools.partial(
      infer_and_score._check_output, str(tmp_path), f"{tmp_path}/lines-7")
  with pytest.raises(ValueError, match="^infer: results must not replace the "):
    check(f"{tmp_path}/lines")
  check(f"{tmp_path}/line")
  (tmp_path / "model.ckpt-7.index").unlink()
  check(f"{tmp_path}/lines")  # the result is called after another step


@pytest.mark.parametrize("bindings, said", [
    ({"repeats": 0}, "decode_from_file: repeats must be a whole number, at le"),
    ({"repeats": "2"}, "decode_from_file: repeats must .*, with repeats='2'"),
    ({"output_filename": ""}, "infer: output_filename must be the name of a f"),
    ({"output_filename": "x/"}, "infer: output_filename must be the name of "),
    ({"output_filename": 3}, "infer: output_filename must be the name of a fi"),
    ({"input_filename": ["a"]}, r"infer: input_filename must .*=\['a'\], wh")])
def test_what_cannot_be_decoded(bindings, said, clean_gin, tmp_path):
  (tmp_path / "in").write_text("A\n")
  bindings = {"input_filename": f"{tmp_path}/in",
              "output_filename": f"{tmp_path}/out"} | bindings
  with pytest.raises(ValueError, match=f"^{said}"):
    infer_and_score._check_output(str(tmp_path), **bindings)


def test_results_stay_on_their_line(tmp_path):
  utils.write_lines_to_file(
      ["a\nb", "c\r\nd\re", b"f", "", 7, "g\u2028h"], f"{tmp_path}/out")
  assert (tmp_path / "out").read_bytes().decode() == (
      "a b\nc d e\nf\n\n7\ng\u2028h\n")
