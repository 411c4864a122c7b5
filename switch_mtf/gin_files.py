"""Reads gin files without running them.

Macros and references stay as they are written, so that files of other projects'
modules can be read, too, and a binding can be traced to its line.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

import dataclasses
import os
import tokenize
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser
from mesh_tensorflow.transformer import utils
from t5.models import mesh_transformer_main

from switch_mtf import gin_syntax
from switch_mtf.errors import near

REQUIRED = "gin.REQUIRED"
COMMAND_LINE = "--gin_param"

# The gin files of upstream: those of mesh_tensorflow, of which DEFAULTS comes
# before the files of every run, and those of T5, found by their relative path.
MTF_FOLDER = os.path.join(os.path.dirname(utils.__file__), "gin")
T5_FOLDER = os.path.join(os.path.dirname(mesh_transformer_main.__file__), "gin")
DEFAULTS = os.path.join(MTF_FOLDER, "defaults.gin")
OUR_FOLDER = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "gin")


@dataclasses.dataclass(frozen=True)
class Binding:
  """A binding of a gin file.

  Attributes:
    scope: scope in front of the name, or "".
    name: a macro, or configurable and parameter: `SwitchFFN.group_size`.
    value: value with macros and references as `Macro` and `Reference`.
    file: file of the binding; "--gin_param" for one on the command line.
    line: line in the file.
  """

  scope: str
  name: str
  value: Any
  file: str
  line: int

  @property
  def is_macro(self) -> bool:
    """Returns whether the binding defines a macro."""
    return "." not in self.name

  @property
  def short_name(self) -> str:
    """Returns configurable and parameter, without the module in front."""
    return ".".join(self.name.split(".")[-2:])

  @property
  def is_recorded(self) -> bool:
    """Returns whether the binding is of what a run has recorded."""
    return self.file.endswith("operative_config.gin")

  @property
  def is_provided(self) -> bool:
    """Returns whether the binding is of a file of upstream or of ours."""
    return os.path.abspath(self.file).startswith(
        (MTF_FOLDER, T5_FOLDER, OUR_FOLDER))

  @property
  def place(self) -> str:
    """Returns file and line, or the flag, for people."""
    return (self.file if self.file == COMMAND_LINE
            else f"{self.file}, line {self.line}")


@dataclasses.dataclass(frozen=True)
class Import:
  """An import statement of a gin file.

  Attributes:
    module: full name of the module.
    file: file of the statement.
    line: line in the file.
  """

  module: str
  file: str
  line: int

  @property
  def place(self) -> str:
    """Returns file and line, for people."""
    return f"{self.file}, line {self.line}"


class Macro(str):
  """A macro, `%name`, as a value."""


class Reference(str):
  """A reference, `@scope/name` or `@scope/name()`, without the "@"."""


class _AsWritten(config_parser.ParserDelegate):
  """A parser delegate that leaves macros and references unresolved."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name + "()" * evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def read(
    paths: Sequence[str], params: Sequence[str], folders: Sequence[str]
) -> list[Binding]:
  """Returns every binding of files, of files they include, and of --gin_param.

  Args:
    paths: values of --gin_file; a file that cannot be found is left out: gin
      reports it.
    params: values of --gin_param.
    folders: folders in which gin looks, besides the working directory.

  Returns:
    The bindings in the order in which gin applies them.

  Raises:
    ValueError: if a file cannot be read, or gin's parser cannot parse it.
  """
  found = [statement for path in paths for statement in _of_file(path, folders)]
  for param in params:
    found += _statements(param, COMMAND_LINE, folders)
  return [statement for statement in found if isinstance(statement, Binding)]


def imports(paths: Sequence[str], folders: Sequence[str]) -> list[Import]:
  """Returns every import of files and of files that they include.

  Args:
    paths: files, as for `read`.
    folders: folders in which gin looks, besides the working directory.
  """
  return [statement for path in paths for statement in _of_file(path, folders)
          if isinstance(statement, Import)]


def _of_file(
    path: str, folders: Sequence[str], within: tuple[str, ...] = ()
) -> Iterator[Binding | Import]:
  """Yields the statements of a file, if there is one.

  `within` has the files that include each other, the last of which includes
  this one.
  """
  for place in (path, *(os.path.join(folder, path) for folder in folders)):
    if os.path.isfile(place):
      if place in within:
        circle = " -> ".join([*within[within.index(place):], place])
        raise ValueError(
            "gin: no file must include itself, also not through others, with "
            f"circle={circle}. Take one of these includes out.")
      yield from _statements(_text(place), place, folders, (*within, place))
      return
  if within and "://" not in path:
    nearest = near(path, provided_files(folders), cutoff=0.5)
    raise ValueError(
        f"gin: an included file must be there, with include={path}{nearest}. "
        f"Correct it in {within[-1]}.")


def provided_files(folders: Sequence[str]) -> list[str]:
  """Returns the paths of the gin files in folders, relative to these."""
  return [os.path.relpath(os.path.join(root, name), folder)
          for folder in folders for root, _, names in os.walk(folder)
          for name in names if name.endswith(".gin")]


def _text(path: str) -> str:
  """Returns the text of a file; raises ValueError if it cannot be read."""
  try:
    with open(path, encoding="utf-8") as f:
      return f.read()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
        f"gin: a gin file must be readable UTF-8 text, with file={path}: "
        f"{error}. Correct the file or its permissions.") from error


def _statements(
    text: str, file: str, folders: Sequence[str], within: tuple[str, ...] = ()
) -> Iterator[Binding | Import]:
  """Yields the statements of a text and of the files that it includes."""
  parser = config_parser.ConfigParser(text, _AsWritten())
  while True:
    try:
      statement = next(parser, None)
    except (SyntaxError, tokenize.TokenError) as error:
      raise gin_syntax.explain(error, text, file) from error
    if statement is None:
      return
    if isinstance(statement, config_parser.IncludeStatement):
      yield from _of_file(statement.filename, folders, within or (file,))
    elif isinstance(statement, config_parser.ImportStatement):
      yield Import(statement.module, file, statement.location.line_num)
    elif isinstance(statement, config_parser.BindingStatement):
      scope, name = statement.scope or "", statement.selector
      if statement.arg_name:
        name = f"{name}.{statement.arg_name}"
      yield Binding(
          scope, name, statement.value, file, statement.location.line_num)


def current() -> list[Binding]:
  """Returns what gin has bound, in the form of `read`."""
  return [statement for statement in _statements(gin.config_str(), "gin", [])
          if isinstance(statement, Binding)]


def setting(
    bindings: Sequence[Binding], name: str, default: Any = None
) -> tuple[Any, str]:
  """Returns the value that a run gives to a parameter, and what sets it.

  Args:
    bindings: bindings in the order in which gin applies them.
    name: configurable and parameter without a module, such as "run.mode".
    default: value where nothing binds it.

  Returns:
    The value of the last binding without a scope; macros are followed.
    The name to bind for another one: of the parameter, or of its macro.
  """
  found = next((b for b in reversed(bindings) if not b.scope
                and f".{b.name}".endswith(f".{name}")), None)
  if found is None:
    return default, name
  found = source(found, bindings)
  return found.value, found.name


def source(binding: Binding, bindings: Sequence[Binding]) -> Binding:
  """Returns the binding that has the value of another: macros are followed.

  Args:
    binding: a binding whose value may be a macro.
    bindings: bindings in the order in which gin applies them.

  Returns:
    The binding without a macro, or the one whose macro nothing binds.
  """
  seen = []
  while isinstance(binding.value, Macro) and binding not in seen:
    seen.append(binding)
    binding = next((b for b in reversed(bindings) if not b.scope
                    and b.name == binding.value), binding)
  return binding


def macros(path: str) -> dict[str, Any]:
  """Returns the macros that a gin file defines, by name."""
  return {b.name: b.value for b in read([path], [], [T5_FOLDER])
          if b.is_macro}


def unset(path: str) -> list[str]:
  """Returns the names that a gin file leaves for the command line to bind."""
  return [b.name for b in unset_bindings(read([path], [], [T5_FOLDER]))]


def unset_bindings(bindings: Sequence[Binding]) -> list[Binding]:
  """Returns the bindings whose last value is %gin.REQUIRED."""
  last = {(binding.scope, binding.name): binding for binding in bindings}
  return [b for b in last.values() if b.value == Macro(REQUIRED)]


def bind_in_scope(path: str, scope: str) -> None:
  """Applies the bindings of a gin file inside a scope.

  Macros are replaced by their values in that file. A binding that exists in the
  scope wins over the file's, also over one for a part of the model.

  Args:
    path: a gin file, such as the operative_config.gin of a run.
    scope: scope to put in front of the file's scopes.

  Raises:
    ValueError: if gin does not know a name.
  """
  values = macros(path)
  lines = []
  for binding in read([path], [], [T5_FOLDER]):
    scopes = [scope, *filter(None, binding.scope.split("/"))]
    names = ["/".join([*scopes[:depth], binding.name])
             for depth in range(1, len(scopes) + 1)]
    if not binding.is_macro and not any(map(_is_bound, names)):
      lines.append(f"{names[-1]} = {written(binding.value, values)}")
  with gin.unlock_config():
    gin.parse_config(lines)


def _is_bound(name: str) -> bool:
  """Returns whether gin has a binding of this name."""
  try:
    gin.query_parameter(name)
  except ValueError:
    return False
  return True


def written(value: Any, macros: Mapping[str, Any] = types.MappingProxyType({})
            ) -> str:
  """Returns a value as a gin file has it.

  Args:
    value: value with macros and references as `Macro` and `Reference`.
    macros: values that replace macros, by name.
  """
  if isinstance(value, Macro):
    return written(macros[value], macros) if value in macros else f"%{value}"
  if isinstance(value, Reference):
    return f"@{value}"
  if isinstance(value, dict):
    return "{" + ", ".join(
        f"{written(k, macros)}: {written(v, macros)}"
        for k, v in value.items()) + "}"
  if isinstance(value, list | tuple):
    inside = "".join(f"{written(part, macros)}, " for part in value)
    return f"[{inside}]" if isinstance(value, list) else f"({inside})"
  return repr(value)


def flat(value: Any) -> Iterator[Any]:
  """Yields the leaves of a value."""
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple):
    for part in value:
      yield from flat(part)
  else:
    yield value
