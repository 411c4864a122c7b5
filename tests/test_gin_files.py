"""Gin files are read as gin reads them."""

import pytest

from switch_mtf import gin_files


def write(folder, name, text):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return str(path)


def test_reads_files_in_the_order_of_gin(tmp_path):
  write(tmp_path, "gin/parent.gin", "x = 1\ny = 2\n")
  child = write(tmp_path, "child.gin",
                "# a comment\ninclude 'gin/parent.gin'\n\nx = 3\n"
                "encoder/Layer.size = %x\nLayer.sub = [@train/Other(), %y]\n")
  found = gin_files.read([child], ["x = 4"], [str(tmp_path)])
  assert [(b.scope, b.name, b.value, b.line) for b in found] == [
      ("", "x", 1, 1), ("", "y", 2, 2), ("", "x", 3, 4),
      ("encoder", "Layer.size", "x", 5),
      ("", "Layer.sub", ["train/Other()", "y"], 6), ("", "x", 4, 1)]
  assert isinstance(found[3].value, gin_files.Macro)
  assert isinstance(found[4].value[0], gin_files.Reference)
  assert [b.is_macro for b in found] == [True] * 3 + [False] * 2 + [True]
  assert found[-1].file == "--gin_param"


def test_a_file_that_is_not_there_is_left_to_gin():
  assert gin_files.read(["nowhere.gin"], [], []) == []


def test_imports_of_a_file_and_of_what_it_includes(tmp_path):
  write(tmp_path, "parent.gin", "\nimport a.b\n")
  child = write(tmp_path, "child.gin", "import c\ninclude 'parent.gin'\n")
  assert [(i.module, i.line) for i in gin_files.imports(
      [child], [str(tmp_path)])] == [("c", 1), ("a.b", 2)]


# Files that cannot be read.


def test_a_circle_of_includes_is_refused(tmp_path):
  one, two = tmp_path / "one.gin", tmp_path / "two.gin"
  one.write_text(f"include '{two}'\n")
  two.write_text(f"include '{one}'\n")
  with pytest.raises(ValueError, match=f"circle={one} -> {two} -> {one}"):
    gin_files.read([str(one)], [], [])
  with pytest.raises(ValueError, match="circle="):
    one.write_text(f"include '{one}'\n")
    gin_files.read([str(one)], [], [])


def test_a_file_may_be_included_twice(tmp_path):
  one, two = tmp_path / "one.gin", tmp_path / "two.gin"
  one.write_text(f"include '{two}'\ninclude '{two}'\n")
  two.write_text("a = 1\n")
  assert len(gin_files.read([str(one), str(two)], [], [])) == 3


def test_an_included_file_must_be_there(tmp_path):
  (tmp_path / "models").mkdir()
  (tmp_path / "models/mini.gin").write_text("")
  (tmp_path / "run.gin").write_text("include 'models/mni.gin'\n")
  with pytest.raises(ValueError, match="include=models/mni.gin, nearest: "
                     "models/mini.gin. Correct it in"):
    gin_files.read(["run.gin"], [], [str(tmp_path)])


def test_a_file_must_be_text(tmp_path):
  path = tmp_path / "run.gin"
  path.write_bytes(b"a = '\xff'\n")
  with pytest.raises(ValueError, match="must be readable UTF-8 text"):
    gin_files.read([str(path)], [], [])


def test_setting():
  bindings = gin_files.read([], [
      "utils.run.mode = 'train'", "utils.run.train_steps = %steps",
      "steps = %other", "other = 5", "run.mode = 'eval'", "encoder/run.mode=1",
      "steps = %other", "xrun.mode = 2", "utils.run.x = %nowhere"], [])
  # The last binding without a scope; a macro is followed to its end.
  assert gin_files.setting(bindings, "run.mode") == ("eval", "run.mode")
  assert gin_files.setting(bindings, "run.train_steps") == (5, "other")
  assert gin_files.setting(bindings, "run.batch", 7) == (7, "run.batch")
  value, name = gin_files.setting(bindings, "run.x")
  assert value == gin_files.Macro("nowhere") and name == "utils.run.x"
