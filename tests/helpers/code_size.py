"""Counts functions, docstrings and lines of the code, and checks its English.

    python tests/helpers/code_size.py

prints the figures that CONTRIBUTING.md sets limits to; tests/test_code.py holds
them.
"""

import ast
import pathlib
import re
import statistics
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("switch_mtf", "tasks", "benchmarks")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
# A docstring or argument that begins so names no thing and has no verb.
HEADLESS = re.compile(r"(Of|What|Those|As|How|Which|It|Its|That|This)\b")


def sources(*folders: str) -> Iterator[pathlib.Path]:
  """Yields the Python files of the code; of `folders`, if there are any."""
  for folder in folders or FOLDERS:
    yield from sorted((ROOT / folder).rglob("*.py"))
  if not folders:
    yield ROOT / "run_t5.py"


def definitions(path: pathlib.Path) -> Iterator[ast.AST]:
  """Yields the functions and classes of a file, nested ones too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, FUNCTION | ast.ClassDef):
      yield node


def lines_of(node: ast.AST) -> int:
  """Returns the number of lines of a definition, docstring included."""
  return node.end_lineno - node.lineno + 1


def long_functions(limit: int) -> list[str]:
  """Returns the functions with more lines than `limit`."""
  return [f"{path.relative_to(ROOT)}:{node.name} {lines_of(node)}"
          for path in sources() for node in definitions(path)
          if isinstance(node, FUNCTION) and lines_of(node) > limit]


def long_files(limit: int) -> list[str]:
  """Returns the files with more lines than `limit`, tests included."""
  return [f"{path.relative_to(ROOT)} {count}"
          for path in [*sources(), *sources("tests")]
          if (count := len(path.read_text().splitlines())) > limit]


def documented() -> tuple[int, int]:
  """Returns how many top-level definitions and methods have a docstring.

  Functions inside functions and special methods are left out: their docstring
  is that of the function or class around them.

  Returns:
    The number with a docstring, and the number of all.
  """
  found = [node for path in sources() for node in _outer(path)]
  return sum(ast.get_docstring(node) is not None for node in found), len(found)


def _outer(path: pathlib.Path) -> Iterator[ast.AST]:
  """Yields the functions, classes and methods of a file."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, FUNCTION | ast.ClassDef):
      yield node
    if isinstance(node, ast.ClassDef):
      yield from (inner for inner in node.body if isinstance(inner, FUNCTION)
                  and not inner.name.startswith("__"))


def headless() -> list[str]:
  """Returns the docstrings that begin with neither a verb nor a thing.

  Also the lines of `Args:` that begin so, and `Returns: It.`.
  """
  found = []
  for path in sources():
    nodes = [ast.parse(path.read_text()), *definitions(path)]
    for node in nodes:
      text = ast.get_docstring(node) or ""
      lines = [text, *re.findall(r"^  \w+: (.*)$", text, re.MULTILINE),
               *re.findall(r"Returns:\n  (.*)", text)]
      found += [f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} "
                f"{line.splitlines()[0]}"
                for line in lines if HEADLESS.match(line)
                or line.startswith("of ")]
      if text and _does_something(node) and not _begins_with_verb(text):
        found.append(f"{path.relative_to(ROOT)}:{node.lineno} "
                     f"{text.splitlines()[0]}")
  return found


def _does_something(node: ast.AST) -> bool:
  """Returns whether a definition is a function, and not a property."""
  return isinstance(node, FUNCTION) and "property" not in [
      ast.unparse(decorator) for decorator in node.decorator_list]


def _begins_with_verb(text: str) -> bool:
  """Returns whether the first word looks like a verb in the third person."""
  first = re.match(r"[\w-]+", text)
  return bool(first) and (first[0].endswith("s") or first[0] == "See")


def main() -> None:
  """Prints the figures."""
  sizes = sorted(lines_of(node) for path in sources()
                 for node in definitions(path) if isinstance(node, FUNCTION))
  with_docstring, all_of_them = documented()
  print(f"functions: {len(sizes)}, median {statistics.median(sizes):g} lines, "
        f"longest {sizes[-1]}, over 60: {long_functions(60) or 'none'}")
  print(f"docstrings: {with_docstring} of {all_of_them}, "
        f"{with_docstring / all_of_them:.1%}")
  print(f"files over 400 lines: {long_files(400) or 'none'}")
  print("headless:", *(headless() or ["none"]), sep="\n  ")


if __name__ == "__main__":
  main()
