import importlib
import sys
import textwrap

import pytest

from switch_mtf.upstream.late_imports import LateModule, import_when_used


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Makes a package `late_p` with a module `m`, which tell when they run."""
  folder = tmp_path / "late_p"
  folder.mkdir()
  (folder / "__init__.py").write_text("import late_log\nlate_log.ran('p')\n")
  (folder / "m.py").write_text(textwrap.dedent("""\
      import late_log
      late_log.ran('m')
      def twice(x):
        return 2 * x
      """))
  ran = []
  log = type(sys)("late_log")
  log.ran = ran.append
  monkeypatch.setitem(sys.modules, "late_log", log)
  monkeypatch.syspath_prepend(tmp_path)
  yield ran
  for name in ("late_p", "late_p.m"):
    sys.modules.pop(name, None)


def test_waits_until_something_is_read(package):
  import_when_used("late_p")
  import_when_used("late_p.m")
  import late_p.m
  assert isinstance(late_p.m, LateModule)
  assert package == []
  assert late_p.m.twice(3) == 6
  # What a module is in comes first, as without waiting.
  assert package == ["p", "m"]


def test_names_are_those_of_the_module(package):
  late = import_when_used("late_p.m")
  from late_p.m import twice
  assert late.twice is twice is sys.modules["late_p.m"].twice
  assert not isinstance(sys.modules["late_p.m"], LateModule)
  assert package == ["p", "m"]


def test_what_it_is_in_is_imported_now(package):
  import_when_used("late_p.m")
  assert package == ["p"]


def test_a_name_that_is_missing(package):
  import_when_used("late_p.m")
  import late_p.m
  with pytest.raises(AttributeError, match="thrice"):
    late_p.m.thrice  # noqa: B018


def test_looking_around_imports_nothing(package):
  late = import_when_used("late_p")
  assert not hasattr(late, "__wrapped__")
  assert late.__spec__.name == late.__name__ == "late_p"
  assert late.__file__.endswith("late_p/__init__.py")
  assert package == []


def test_what_was_set_is_there_until_the_module_has_it(package):
  late = import_when_used("late_p")
  late.own, late.late_log = 1, 2
  assert (late.own, late.late_log) == (1, 2)
  assert package == []
  late.imported()
  assert late.own == 1
  assert late.late_log is sys.modules["late_log"]


def test_is_run_once(package):
  late = import_when_used("late_p")
  late.imported()
  late.imported()
  importlib.import_module("late_p")
  assert package == ["p"]


def test_what_is_imported_or_not_installed_is_left_alone(package):
  importlib.import_module("late_p")
  before = sys.modules["late_p"]
  assert import_when_used("late_p") is None
  assert sys.modules["late_p"] is before
  for missing in ("late_q", "late_p.q", "late_q.m"):
    assert import_when_used(missing) is None
    assert missing not in sys.modules
