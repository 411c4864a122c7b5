"""What is said of a line that gin cannot read."""

import pytest

from switch_mtf import gin_files, gin_syntax


def error_of(tmp_path, text):
  path = tmp_path / "run.gin"
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    gin_files.read([str(path)], [], [])
  return str(error.value)


@pytest.mark.parametrize("line, meant", {
    "MIXTURE_NAME = name": 'MIXTURE_NAME = "name"',
    "a.path = /data/x.txt": 'a.path = "/data/x.txt"',
    "a = 'name": "a = 'name'",
    "a = \u201cname\u201d": 'a = "name"',
    "train_steps 20": "train_steps = 20",
    "train_steps: 20": "train_steps = 20",
    "train_steps == 20": "train_steps = 20",
    "train_steps = 20;": "train_steps = 20",
    "train_steps = 1,000": "train_steps = 1000",
    "rate = 0,01": "rate = 0.01",
    "x.flag = true": "x.flag = True",
    "x.flag = null": "x.flag = None",
    "train_steps =": "train_steps = <a value>",
    "include gin/models/mini.gin": "include 'gin/models/mini.gin'",
    "--gin_param=a = 3": "a = 3",
    "\ufeffa = 3": "a = 3",
}.items())
def test_likely_corrections(line, meant, tmp_path):
  text = error_of(tmp_path, f"b = 1\n\n{line}\nc = 2\n")
  assert f"file={tmp_path}/run.gin, line=3, read={line.strip()!r}. " in text
  assert f"Likely correction: {meant}. Correct line 3 of" in text
  # A correction is one: gin reads it.
  if "<" not in meant and not meant.startswith("include"):
    assert len(gin_files.read([], [meant], [])) == 1


@pytest.mark.parametrize("line", [
    "a = %", "a = [1 2]", "= 3", "a-b = 3", "include 'x' y", "a = 10k",
    "import", "\0"])
def test_lines_without_a_likely_correction(line, tmp_path):
  text = error_of(tmp_path, line)
  assert "line=1" in text and "Likely" not in text


@pytest.mark.parametrize("text, number, bracket", [
    ("a = 1\nb = [1, 2\nc = 3\n", 2, "["), ("b = {'x': (1, 2}\n", 1, "{"),
    ("a = '(['\nb = @f(", 2, "("), ("# [ (\nb = {", 2, "{")])
def test_an_open_bracket_is_found_where_it_opens(
    text, number, bracket, tmp_path):
  assert gin_syntax.unclosed(text) == (number, bracket)
  found = error_of(tmp_path, text)
  assert f"every {bracket} must be closed" in found
  assert f"line={number}, read=" in found


@pytest.mark.parametrize("text", [
    "a = [1, (2, 3)]", "a = '['", 'a = "it\'s ("', "a = 1  # [",
    'a = """\n[\n"""'])
def test_closed_brackets(text):
  assert gin_syntax.unclosed(text) is None


def test_the_command_line_is_named():
  with pytest.raises(ValueError, match="with flag=--gin_param, read='a 3'.*"
                     "Correct --gin_param"):
    gin_files.read([], ["a 3"], [])
