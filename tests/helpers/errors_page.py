"""Writes docs/errors.md from the code: every error that a user can correct.

    python tests/helpers/errors_page.py

An error is a text of the form that CONTRIBUTING.md gives, wherever it stands in
the code. tests/test_errors_page.py fails if the page is not what this writes.
"""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "errors.md"
START = """# Errors

Written from the code by `python tests/helpers/errors_page.py`: after an error
has been added or changed, run it again.

An error that you can correct is one line, without a traceback, and the exit
status is 1 (2 for the planner). It says who complains, what must hold, with
which values, and what to change:

    <who>: <what must hold>, with <name=value, ...>. <What to change.>

Here, ‹words› stand for what an error fills in. The errors of a room of the code
are together, those of `run_t5.py` and of gin files first. `--verbosity=0` shows
the traceback as well.
"""
# Rooms in the order in which a run meets them; others follow by name.
FIRST = ["run_t5", "gin files", "errors", "upstream", "tasks", "training"]
HOUSE = re.compile(r"^([\w<>.() ]{1,60}?): (.* must .*)$", re.DOTALL)


class Error(NamedTuple):
  """An error: its room, who complains, what must hold, the remedy."""

  room: str
  who: str
  what: str
  remedy: str


def errors() -> list[Error]:
  """Returns the errors of the code, in the order of the page."""
  paths = [ROOT / "run_t5.py", *(ROOT / "switch_mtf").rglob("*.py"),
           *(ROOT / "tasks").rglob("*.py")]
  found = {error for path in paths for error in of_code(
      path.read_text(), room(path))}
  return sorted(found, key=lambda error: (
      FIRST.index(error.room) if error.room in FIRST else len(FIRST), error))


def room(path: pathlib.Path) -> str:
  """Returns the room of a file: its folder, or its name."""
  folder, *rest = path.relative_to(ROOT).parts
  if folder == "tasks":
    return "tasks"
  if rest and len(rest) > 1:
    return rest[0]
  return "gin files" if path.stem.startswith("gin_") else path.stem


def of_code(text: str, room: str) -> Iterator[Error]:
  """Yields the errors in the text of a module."""
  for words in _texts(ast.parse(text)):
    words = " ".join(words.split())
    house = HOUSE.match(words)
    if house:
      what, remedy = _divided(house[2])
      yield Error(room, house[1], what, remedy)


def _texts(node: ast.AST) -> Iterator[str]:
  """Yields the whole texts of a piece of code, but for docstrings."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
      continue  # a docstring
    text = _text(child)
    if text is None:
      yield from _texts(child)
    else:
      yield text


def _text(node: ast.AST) -> str | None:
  """Returns a text with words in place of values; None if it is no text."""
  if isinstance(node, ast.Constant):
    return node.value if isinstance(node.value, str) else None
  if isinstance(node, ast.JoinedStr):
    return "".join(
        _text(part) or "" if isinstance(part, ast.Constant)
        else _placeholder(part.value) for part in node.values)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    left, right = _text(node.left), _text(node.right)
    if left is None and right is None:
      return None
    return ((_placeholder(node.left) if left is None else left)
            + (_placeholder(node.right) if right is None else right))
  return None


def _placeholder(node: ast.AST) -> str:
  """Returns '<words>' for a value."""
  names = [part.id if isinstance(part, ast.Name) else part.attr
           for part in ast.walk(node)
           if isinstance(part, ast.Name | ast.Attribute)]
  names = [name for name in names if name not in (
      "self", "join", "str", "map", "len", "errors", "type", "__name__",
      "sorted", "list", "max", "min", "int")]
  called = node.func if isinstance(node, ast.Call) else None
  name = (getattr(called, "attr", None) or getattr(called, "id", None))
  if name not in names:
    name = names[0] if names else "text"
  return f"<{name.strip('_').replace('_', ' ')}>"


def _divided(text: str) -> tuple[str, str]:
  """Divides what must hold, with its values, from what to change."""
  start = max(text.find(", with "), text.find(" must "))
  end = re.search(r"\. ?(?=[A-Z<]|$)", text[start:])
  if not end:
    return text, ""
  return text[:start + end.start()], text[start + end.end():]


def page() -> str:
  """Returns the text of docs/errors.md."""
  lines, last = [START.rstrip()], None
  for error in errors():
    if error.room != last:
      lines += ["", f"## {error.room}", "",
                "| who | what must hold | what to change |", "|---|---|---|"]
      last = error.room
    lines.append("| " + " | ".join(map(_cell, error[1:])) + " |")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  """Returns a text as the cell of a table."""
  text = text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
  return re.sub(r"<([^<>]*)>", r"‹\1›", text).replace("<", "&lt;")


if __name__ == "__main__":
  PAGE.write_text(page())
