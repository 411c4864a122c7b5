"""docs/errors.md has the errors of the code."""

import pytest
from helpers import errors_page


def test_the_page_is_that_of_the_code():
  assert errors_page.PAGE.read_text() == errors_page.page(), (
      "run python tests/helpers/errors_page.py")


def test_errors_of_every_room_are_found():
  found = errors_page.errors()
  assert len(found) > 120
  assert {error.room for error in found} >= {
      "run_t5", "gin files", "errors", "upstream", "tasks", "training",
      "layers", "planning", "dims", "distillation", "comparison"}
  assert sum(not error.remedy for error in found) <= 3


@pytest.mark.parametrize("code, error", [
    ('raise ValueError(f"a: b must be {len(sizes)}, with b={self.b}. '
     'Set {x}.")',
     ("a", "b must be ‹sizes›, with b=‹b›", "Set ‹x›.")),
    ('text = "a: b must be c, with b=1" + near(name) + ". Set b."',
     ("a", "b must be c, with b=1‹near›", "Set b.")),
    ('raise ValueError(f"{who}: it must be, with x=1.5.")',
     ("‹who›", "it must be, with x=1.5", "")),
    ('def f():\n  """who: it must be."""', None),
    ('raise ValueError("a must be b")', None)])
def test_errors_are_read(code, error):
  found = [tuple(map(errors_page._cell, e[1:]))
           for e in errors_page.of_code(code, "room")]
  assert found == ([error] if error else [])
