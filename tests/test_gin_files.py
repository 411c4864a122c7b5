"""Gin files are read as gin reads them."""

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
