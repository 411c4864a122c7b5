"""Files of lines: what is a line, and what is said of a wrong file."""

import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.upstream import text_files


def read(path, content):
  path.write_bytes(content)
  return text_files.read_lines("infer", "input_filename", str(path), "inputs")


@pytest.mark.parametrize("content, lines", [
    (b"A\n", ["A"]),
    (b"A", ["A"]),
    (b"A\nB", ["A", "B"]),
    (b"A\n\n", ["A", ""]),
    (b"\nA\n\n\n", ["", "A", "", ""]),
    (b"\n\n\n", ["", "", ""]),
    (b"A\r\nB\r\n\r\n", ["A", "B", ""]),
    (b"A\rB\nC\n", ["AB", "C"]),  # as tf.data.TextLineDataset
    ("A\u2028B\x85C\x0bD\n".encode(), ["A\u2028B\x85C\x0bD"]),
    (b"A\0B\n", ["A\0B"]),
    (b" A \n", [" A "]),
    (b"\xef\xbb\xbfA\n\xef\xbb\xbfB\n", ["A", "\ufeffB"]),
    (b"x" * 100_000 + b"\n", ["x" * 100_000]),
])
def test_lines(content, lines, tmp_path):
  found = read(tmp_path / "in.txt", content)
  assert found == lines
  assert found.path == str(tmp_path / "in.txt")
  assert found.described() == f"inputs={len(lines)} ({tmp_path}/in.txt)"


@pytest.mark.parametrize("content, said", [
    (b"", "at least one line, with input_filename=.*, bytes=0. "),
    (b"\xef\xbb\xbf", "at least one line, with input_filename=.*, bytes=3. "),
    (b"A\rB\rC", "end with a line feed, .* carriage returns=2, line feeds=0. "),
    (b"A\nna\xefve\n", r"UTF-8 text, .* line=2, byte=3 \(0xef\). .*latin1.*"
     "and set input_filename = 'new.txt'."),
    (b"\xe9", r"line=1, byte=1 \(0xe9\)"),
    (b"A\n" * 700 + b"\xe2\x80", r"line=701, byte=1 \(0xe2\)"),
    ("A\nB\n".encode("utf-16"), r"line=1, byte=1 .*iconv -f utf-16 -t utf-8"),
])
def test_wrong_files(content, said, tmp_path):
  with pytest.raises(ValueError, match=f"(?s)^infer: .* must .*{said}"):
    read(tmp_path / "in.txt", content)


def test_what_is_no_file(tmp_path):
  def refused(path, said):
    with pytest.raises(
        ValueError, match=f"^infer: input_filename must be a text file, with "
        f"input_filename={path}, which {said}. Set input_filename to "):
      text_files.read_lines("infer", "input_filename", str(path), "inputs")

  (tmp_path / "lines.txt").write_text("A\n")
  refused(tmp_path, "is a folder")
  refused(tmp_path / "line.txt", "does not exist, nearest: lines.txt")
  refused(tmp_path / "other", "does not exist")
  refused(tmp_path / "no" / "a.txt",
          "does not exist, and neither does its folder")


def test_what_may_not_be_read(tmp_path, monkeypatch):
  # Root may read a file that it has no permission to read.
  def denied(path, mode):
    raise tf.errors.PermissionDeniedError(None, None, f"{path}: denied")

  (tmp_path / "lines.txt").write_text("A\n")
  monkeypatch.setattr(text_files.tf.io.gfile, "GFile", denied)
  with pytest.raises(ValueError, match="which cannot be read: .*denied"):
    text_files.read_lines(
        "infer", "input_filename", str(tmp_path / "lines.txt"), "inputs")


def test_results_replace_no_file_that_is_read(tmp_path):
  lines = read(tmp_path / "x.targets", b"A\n")
  with pytest.raises(ValueError, match="^score: results must not replace the "
                     "file that is read, with input_filename=.*x.targets, "
                     "results=.*x.targets. Set scores_filename to another"):
    text_files.check_outputs(
        "score", "scores_filename",
        [str(tmp_path / name) for name in ("x.scores", "x.targets")], [lines])
  text_files.check_outputs(
      "score", "scores_filename", [str(tmp_path / "y.targets")], [lines])


def test_results_can_be_written(tmp_path):
  def check(path):
    text_files.check_outputs("infer", "output_filename", [str(path)], [])

  (tmp_path / "file").write_text("A")
  check(tmp_path / "file")  # replaced, as before
  check(tmp_path / "new" / "folder" / "file")
  assert not (tmp_path / "new").exists()
  for path, said in ((tmp_path, "it is a folder"),
                     (tmp_path / "file" / "x", "file is not a folder")):
    with pytest.raises(ValueError, match=f"^infer: output_filename must name .*"
                       f"file={path}: .*{said}. Set output_filename"):
      check(path)


@pytest.mark.parametrize("numbers, words", [
    ([4], "line=4"), ([4, 7], "lines=4, 7"),
    ([*range(1, 9)], "lines=1, 2, 3, 4, 5 and 3 more")])
def test_numbered(numbers, words):
  assert text_files.numbered(numbers) == words


def test_longer_lengths_are_multiples():
  lengths = {"targets": 6, "inputs": 24}
  assert text_files.longer(lengths, {"targets": 13}) == (
      "utils.run.sequence_length = {'inputs': 24, 'targets': 18}")
  assert text_files.longer(lengths, {"inputs": 48, "targets": 7}) == (
      "utils.run.sequence_length = {'inputs': 48, 'targets': 12}")
