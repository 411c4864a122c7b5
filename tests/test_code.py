"""The code keeps to CONTRIBUTING.md: sizes, docstrings, English, tests."""

import re
import statistics

import pytest
from helpers import code_size
from helpers.code_size import ROOT


def test_functions_and_files_are_short():
  assert code_size.long_functions(60) == []
  assert code_size.long_files(400) == []
  sizes = [code_size.lines_of(node) for path in code_size.sources()
           for node in code_size.definitions(path)
           if isinstance(node, code_size.FUNCTION)]
  assert statistics.median(sizes) <= 11


def test_most_definitions_have_a_docstring():
  with_docstring, all_of_them = code_size.documented()
  assert with_docstring >= 0.9 * all_of_them


def test_docstrings_begin_with_a_verb_or_a_thing():
  assert code_size.headless() == []


@pytest.mark.parametrize("text, wrong", [
    ('def f():\n  """Returns it."""', 0), ('def f():\n  """Of it."""', 2),
    ('def f():\n  """The value."""', 1), ('class A:\n  """What it is."""', 1),
    ('class A:\n  """A thing."""', 0),
    ('def f(x):\n  """Adds.\n\n  Args:\n    x: of the run.\n  """', 1),
    ('def f(x):\n  """Adds.\n\n  Returns:\n    It.\n  """', 1)])
def test_headless_sentences_are_found(text, wrong, tmp_path, monkeypatch):
  (tmp_path / "a.py").write_text(text)
  monkeypatch.setattr(code_size, "ROOT", tmp_path)
  monkeypatch.setattr(code_size, "sources", lambda: [tmp_path / "a.py"])
  assert len(code_size.headless()) == wrong


def modules():
  """Rooms and names of the package's modules."""
  for path in sorted((ROOT / "switch_mtf").rglob("*.py")):
    if path.name != "__init__.py":
      room = path.parent.name if path.parent.name != "switch_mtf" else ""
      yield room, path.stem.strip("_")


@pytest.mark.parametrize("room, name", list(modules()))
def test_each_module_has_a_test_of_its_name(room, name):
  names = [f"test_{name}.py", f"test_{room}_{name}.py"]
  assert any((ROOT / "tests" / file).exists() for file in names)


def test_no_test_imports_another():
  for path in (ROOT / "tests").rglob("*.py"):
    assert not re.search(r"^(from|import) (test_\w+|conftest)\b",
                         path.read_text(), re.MULTILINE), path
