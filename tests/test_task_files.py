"""Tasks on files of lines: wrong files and lines, with file and line."""

import functools

import gin
import pytest
import seqio
import tensorflow.compat.v1 as tf
import tensorflow_datasets as tfds
from t5.data import preprocessors
from t5.models import mesh_transformer

from switch_mtf import errors
from switch_mtf.upstream import task_files
from tasks import vocabularies

FEATURE = seqio.Feature(vocabularies.SMALL_1K)


@seqio.map_over_dataset
def by_hand(line):
  inputs, targets = tf.io.decode_csv(line, [""] * 2, "\t")
  return {"inputs": inputs, "targets": targets}


@seqio.map_over_dataset
def split(line):
  parts = tf.strings.split([line], "\t").values
  return {"inputs": parts[0], "targets": parts[1]}


# As users write them.
PARSERS = {
    "parse": functools.partial(
        preprocessors.parse_tsv, field_names=["inputs", "targets"]),
    "preprocess": lambda ds: preprocessors.preprocess_tsv(
        ds, inputs_format="say: {0}", targets_format="{1}"),
    "third": functools.partial(
        preprocessors.parse_tsv, field_names=["inputs", "targets"],
        field_columns=[0, 2]),
    "commas": functools.partial(
        preprocessors.preprocess_tsv, field_delim=",", use_quote_delim=True,
        num_fields=3, targets_format="{2}"),
    "by_hand": by_hand,
    "split": split,
}


def read(path, content, parser="parse"):
  """The inputs of a task on a file with this content."""
  path.write_bytes(content)
  return inputs_of(str(path), PARSERS[parser])


def inputs_of(pattern, *steps, header_lines=0, split="train"):
  task = seqio.Task(
      "my_lines", seqio.TextLineDataSource(
          {"train": pattern}, skip_header_lines=header_lines),
      {"inputs": FEATURE, "targets": FEATURE}, [
          *steps, seqio.preprocessors.tokenize,
          seqio.preprocessors.append_eos_after_trim])
  examples = task.get_dataset(
      {"inputs": 32, "targets": 32}, split=split, shuffle=False)
  return [x["inputs_pretokenized"].decode() for x in tfds.as_numpy(examples)]


@pytest.mark.parametrize("parser, content, inputs", [
    ("parse", b"a\tb\nc\td\n", ["a", "c"]),
    ("parse", b"a\tb\r\nc\td", ["a", "c"]),
    ("parse", b"\tb\nc\t\n", ["", "c"]),
    ("parse", b"a\tb\tc\n", ["a"]),  # it selects two columns
    ("parse", b'"a\tb"\n', ['"a']),
    ("parse", "a\u2028b\tc\n".encode(), ["a\u2028b"]),
    ("parse", b"\xef\xbb\xbfa\tb\nc\td\n", ["a", "c"]),
    ("preprocess", b"a\tb\n", ["say: a"]),
    ("third", b"a\tb\tc\n", ["a"]),
    ("commas", b'"a,b",c,d\n', ["a,b"]),
    ("by_hand", b"a\tb\n", ["a"])])
def test_right_lines(parser, content, inputs, tmp_path):
  assert read(tmp_path / "x.tsv", content, parser) == inputs


@pytest.mark.parametrize("parser, content, said", [
    ("parse", b"a\tb\nc\td\te\nf\tg\n",
     r"file=PATH, line=2 \(3 fields: 'c\\td\\te'\)\. "),
    ("parse", b"a\tb\n\nc\td\n", "at least 2 fields, separated by a tab.*"
     r", with file=PATH, line=2 \(blank\)\. "),
    ("parse", b"a\tb\r\n\r\n", r"line=2 \(blank\)\. "),
    ("parse", b"a\tb\nno tab\n", r"line=2 \(1 field: 'no tab'\)\. "),
    ("preprocess", b"a\tb\tc\nd\n", "2 fields, .* "
     r"line=1 \(3 fields: 'a\\tb\\tc'\), line=2 \(1 field: 'd'\)\. "),
    ("preprocess", b"x" * 99 + b"\na\nb\nc\nd\n",
     r"line=1 \(1 field: 'x{37}\.\.\.'\), line=2 .*, line=3 .* and 2 more\. "),
    ("third", b"a\tb\tc\na\tb\n", r"at least 3 fields, .*line=2 \(2 fields: "),
    ("commas", b'"a,b",c\n', r"3 fields, separated by ',', .*line=1 \(2 fie")])
def test_wrong_lines(parser, content, said, tmp_path):
  path = tmp_path / "x.tsv"
  with pytest.raises(ValueError, match="^task my_lines: each line must have .*"
                     + said.replace("PATH", str(path))) as error:
    read(path, content, parser)
  assert str(error.value).endswith(
      f"Correct {path}; a blank line is no example.")
  assert errors.user_message(error.value) == str(error.value)


def test_a_header_is_no_example(tmp_path):
  path = tmp_path / "x.tsv"
  path.write_bytes(b"title\na\tb\n")
  assert inputs_of(str(path), PARSERS["parse"], header_lines=1) == ["a"]
  with pytest.raises(ValueError, match=r"line=1 \(1 field: 'title'\)"):
    inputs_of(str(path), PARSERS["parse"])


def test_a_corrected_file_is_read_again(tmp_path):
  path = tmp_path / "x.tsv"
  with pytest.raises(ValueError, match="line=1"):
    read(path, b"\na\tb\n")
  assert read(path, b"a\tb\n") == ["a"]


def test_all_files_are_looked_at(tmp_path):
  (tmp_path / "1.tsv").write_bytes(b"a\tb\n")
  (tmp_path / "2.tsv").write_bytes(b"c\n")
  with pytest.raises(ValueError, match=r"file=.*2.tsv, line=1 \(1 field: 'c'"):
    inputs_of(f"{tmp_path}/*.tsv", PARSERS["parse"])


def test_what_is_not_utf8_is_refused(tmp_path):
  with pytest.raises(ValueError, match=(
      r"^task my_lines: the file must be UTF-8 text, with file=.*x.tsv, "
      r"line=2, byte=3 \(0xef\). .*iconv -f latin1 -t utf-8 ")):
    read(tmp_path / "x.tsv", b"a\tb\nna\xefve\tc\n")


def test_utf16_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"line=1, byte=1 \(0xff\).*-f utf-16 "):
    read(tmp_path / "x.tsv", "a\tb\n".encode("utf-16"))


def test_a_pattern_without_files_is_refused(tmp_path):
  with pytest.raises(ValueError, match=(
      f"^task my_lines: a split must have files, with split=train, "
      rf"pattern={tmp_path}/\*.tsv. Correct the task's split_to_filepattern.")):
    inputs_of(f"{tmp_path}/*.tsv", PARSERS["parse"])


def test_a_parser_of_ones_own_may_convert(tmp_path, capsys):
  @seqio.map_over_dataset
  def convert(line):
    text = tf.strings.unicode_transcode(line, "ISO-8859-1", "UTF-8")
    return {"inputs": text, "targets": text}

  (tmp_path / "x.txt").write_bytes(b"A\nna\xefve\n")
  for _ in range(2):
    assert inputs_of(f"{tmp_path}/x.txt", convert) == ["A", "na\u00efve"]
  assert capsys.readouterr().err.count(
      f"task my_lines: {tmp_path}/x.txt is not UTF-8 text (line=2, byte=3 "
      "(0xef)); ") == 1


@pytest.mark.parametrize("name, said", [
    ("", "which is a folder"), ("y.tsv", "which does not exist, nearest: x.t")])
def test_what_is_no_file(name, said, tmp_path):
  (tmp_path / "x.tsv").write_bytes(b"a\tb\n")
  with pytest.raises(ValueError, match=(
      "^task my_lines: the files of a split must be text files, with "
      f"split=train, file={tmp_path}/{name}, {said}")):
    inputs_of(f"{tmp_path}/{name}", PARSERS["parse"])


@pytest.mark.parametrize("parser, content, numbers", [
    ("by_hand", b"a\tb\n\n", "wanted=2, found=0"),
    ("split", b"a\tb\n\n", "wanted=2")])
def test_a_parser_of_ones_own_fails_with_file_and_line(
    parser, content, numbers, tmp_path, monkeypatch):
  monkeypatch.setattr(task_files, "_read", {f"{tmp_path}/gone": "task gone"})
  with pytest.raises(tf.errors.InvalidArgumentError) as error:
    read(tmp_path / "x.tsv", content, parser)
  assert errors.user_message(error.value) == (
      "task: each line must have as many fields as its parser wants, with "
      f"{numbers}, task my_lines, file={tmp_path}/x.tsv, line=2 "
      "(blank). Correct the file; a blank line is no example.")


def test_an_unknown_line_without_fields(monkeypatch):
  monkeypatch.setattr(task_files, "_read", {})
  assert errors.explain_fields_error(
      ValueError("slice index 1 of dimension 0 out of bounds")) is None
  text = errors.user_message(
      ValueError("Expect 2 fields but have 1 in record 0"))
  assert text.endswith("wanted=2, found=1. Correct the file; a blank line is "
                       "no example.")


def test_t5s_own_function_for_a_file(tmp_path, clean_gin, capsys):
  path = tmp_path / "x.tsv"

  def read(content):
    path.write_bytes(content)
    gin.parse_config(f"tsv_dataset_fn.filename = '{path}'")
    return mesh_transformer.tsv_dataset_fn(
        sequence_length={"inputs": 8, "targets": 8}, dataset_split="train",
        vocabulary=vocabularies.SMALL_1K)

  read(b"a\tb\n")
  assert not capsys.readouterr().err
  read(b"a\t" + b"the people " * 9 + b"\n\tb\n")
  assert capsys.readouterr().err.startswith(
      "tsv_dataset_fn: 1 of 2 targets cut at 8 tokens: set utils.run.sequence_")
  with pytest.raises(ValueError, match="^tsv_dataset_fn: each line must have 2 "
                     rf"fields, separated by a tab, with file={path}, line=2 "):
    read(b"a\tb\nc\n")
  path.unlink()
  gin.clear_config()
  gin.parse_config(f"tsv_dataset_fn.filename = '{tmp_path}'")
  with pytest.raises(ValueError, match="^tsv_dataset_fn: filename must be a "
                     f"text file, with filename={tmp_path}, which is a folder"):
    mesh_transformer.tsv_dataset_fn(
        sequence_length={"inputs": 8, "targets": 8}, dataset_split="train",
        vocabulary=vocabularies.SMALL_1K)
