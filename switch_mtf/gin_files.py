"""Reads gin files without running them, and finds what gin itself accepts.

gin binds whatever it is told: a scope that nobody enters, a macro that nobody
reads. Both do nothing, and the run is another one than was meant.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

import dataclasses
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser
from mesh_tensorflow.transformer import utils
from t5.models import mesh_transformer_main

from switch_mtf.errors import near

# Scopes that T5, mesh_tensorflow and this project enter by name. Any other must
# be that of a reference, as in `@train/schedule()`.
SCOPES = frozenset({"attention", "decoder", "encoder", "student", "teacher"})
REQUIRED = "gin.REQUIRED"
COMMAND_LINE = "--gin_param"

# Gin files of others: mesh_tensorflow's, of which one stands before those of
# every run, and T5's, which are found by their relative path.
MTF_FOLDER = os.path.join(os.path.dirname(utils.__file__), "gin")
T5_FOLDER = os.path.join(os.path.dirname(mesh_transformer_main.__file__), "gin")
DEFAULTS = os.path.join(MTF_FOLDER, "defaults.gin")

# What may be bound in a file of each folder: a file of layouts nothing else,
# the others none of another's.
LAYOUT = (r"utils\.run\.(mesh_|layout_)|precision\.|"
          r"(utils\.)?(get_variable_dtype|tpu_mesh_shape)\.|"
          r"(utils\.)?tpu_estimator_model_fn\.outer_batch_size")
MODEL = (r"(Switch\w+|\w+Router|init_scale|DenseReluDense|transformer)\.|"
         r"(d_model|d_ff|num_layers|num_heads|d_kv|num_experts)$")
RUN = r"utils\.run\."


@dataclasses.dataclass(frozen=True)
class Binding:
  """One line of a gin file.

  Attributes:
    scope: in front of the name, or "".
    name: of a macro, or configurable and parameter: `SwitchFFN.group_size`.
    value: with macros and references as `Macro` and `Reference`.
    file: where it stands; "--gin_param" if it was on the command line.
    line: of the file.
  """

  scope: str
  name: str
  value: Any
  file: str
  line: int

  @property
  def is_macro(self) -> bool:
    """Whether it defines a macro."""
    return "." not in self.name

  @property
  def place(self) -> str:
    """Where it stands, for people."""
    return f"{self.file}, line {self.line}"


class Macro(str):
  """`%name`, as a value."""


class Reference(str):
  """`@scope/name` or `@scope/name()`, as a value: without the "@"."""


class _AsWritten(config_parser.ParserDelegate):
  """Leaves macros and references unresolved."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name + "()" * evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def read(
    paths: Sequence[str], params: Sequence[str], folders: Sequence[str]
) -> list[Binding]:
  """Every binding of files, of what they include, and of --gin_param.

  Args:
    paths: as given by --gin_file; one that cannot be found is left out, gin
      says so itself.
    params: as given by --gin_param.
    folders: where gin looks, besides the working directory.

  Returns:
    Bindings in the order in which gin applies them.

  Raises:
    SyntaxError: by gin's parser.
  """
  found = []
  for path in paths:
    found += _of_file(path, folders)
  for param in params:
    found += [binding for binding in _statements(param, COMMAND_LINE, folders)]
  return found


def _of_file(path: str, folders: Sequence[str]) -> Iterator[Binding]:
  for place in (path, *(os.path.join(folder, path) for folder in folders)):
    if os.path.isfile(place):
      with open(place, encoding="utf-8") as f:
        yield from _statements(f.read(), place, folders)
      return


def _statements(
    text: str, file: str, folders: Sequence[str]) -> Iterator[Binding]:
  for statement in config_parser.ConfigParser(text, _AsWritten()):
    if isinstance(statement, config_parser.IncludeStatement):
      yield from _of_file(statement.filename, folders)
    elif isinstance(statement, config_parser.BindingStatement):
      scope, name = statement.scope or "", statement.selector
      if statement.arg_name:
        name = f"{name}.{statement.arg_name}"
      yield Binding(
          scope, name, statement.value, file, statement.location.line_num)


def macros(path: str) -> dict[str, Any]:
  """The macros that a gin file defines, by name."""
  return {b.name: b.value for b in read([path], [], [T5_FOLDER])
          if b.is_macro}


def unset(path: str) -> list[str]:
  """What a gin file leaves for the command line to say, by name."""
  return [b.name for b in _unset(read([path], [], [T5_FOLDER]))]


def _unset(bindings: Sequence[Binding]) -> list[Binding]:
  """Those whose last value is %gin.REQUIRED."""
  last = {(binding.scope, binding.name): binding for binding in bindings}
  return [b for b in last.values() if b.value == Macro(REQUIRED)]


def bind_in_scope(path: str, scope: str) -> None:
  """Binds all that a gin file says, in a scope.

  Macros are replaced by their values in that file. What is bound in the scope
  already wins, also over a binding that is only for a part of the model.

  Args:
    path: of the file, such as the operative_config.gin of a run.
    scope: that goes in front of those of the file.

  Raises:
    ValueError: by gin, for a name that it does not know.
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
  try:
    gin.query_parameter(name)
  except ValueError:
    return False
  return True


def written(value: Any, macros: Mapping[str, Any] = types.MappingProxyType({})
            ) -> str:
  """A value as in a gin file.

  Args:
    value: with macros and references as `Macro` and `Reference`.
    macros: values to put in the place of some macros.
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


def check_run(
    paths: Sequence[str], params: Sequence[str], folders: Sequence[str]
) -> None:
  """Raises ValueError for what gin would accept of a run and should not.

  Args:
    paths: as for `read`, like the others; over T5's defaults.
    params: see `paths`.
    folders: see `paths`.

  Raises:
    ValueError: naming the first mistake, with the nearest legal name.
  """
  bindings = read([DEFAULTS, *paths], params, folders)
  check_scopes(bindings)
  check_folders(bindings)
  check_macros(bindings)
  phases = [path for b in bindings if b.name.endswith("train_then.phases")
            for path in flat(b.value)]
  check_command_line([*bindings, *read(phases, [], folders)])


def check_scopes(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a scope that nothing enters.

  Args:
    bindings: in order; mesh_tensorflow's and T5's own may have any scope.

  Raises:
    ValueError: naming the first, with the nearest that is entered.
  """
  legal = set(SCOPES)
  for binding in bindings:
    for value in flat(binding.value):
      if isinstance(value, Reference):
        legal |= set(value.split("/")[:-1])
  for binding in _ours(bindings):
    for scope in filter(None, binding.scope.split("/")):
      if scope not in legal:
        raise ValueError(
            f"gin: a scope must be one that is entered, with scope={scope}"
            f"{near(scope, legal)}, binding={binding.scope}/{binding.name}. "
            f"Correct it in {binding.place}.")


def check_folders(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a binding in the wrong folder.

  Args:
    bindings: in order; in mesh_tensorflow's and T5's files any may stand.

  Raises:
    ValueError: naming the first, and the folder it belongs to.
  """
  for binding in _ours(bindings):
    kind = os.path.basename(os.path.dirname(binding.file))
    right = _right_folder(binding.name, kind)
    if right != kind:
      raise ValueError(
          f"gin: a file of {kind}/ must not bind what belongs to {right}/, "
          f"with binding={binding.name}. Move it from {binding.place} to a "
          f"file of {right}/ or of experiments/.")


def _ours(bindings: Sequence[Binding]) -> list[Binding]:
  return [b for b in bindings
          if not b.file.startswith((MTF_FOLDER, T5_FOLDER))]


def _right_folder(name: str, kind: str) -> str:
  """The folder that a binding belongs to; `kind` if it may stand there."""
  if kind not in ("models", "layouts", "runs"):
    return kind
  if re.match(LAYOUT, name):
    return "layouts"
  if kind != "models" and re.match(MODEL, name):
    return "models"
  if kind == "layouts" or (kind == "models" and re.match(RUN, name)):
    return "runs"
  return kind


def check_macros(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for what is required or used, and has no value.

  Args:
    bindings: of a run, in order: of one that is complete.

  Raises:
    ValueError: naming all that is required, or the first macro that is used.
  """
  missing = _unset(bindings)
  if missing:
    names = ", ".join(sorted(b.name for b in missing))
    example = missing[0]
    raise ValueError(
        f"gin: every required value must be set, with unset={names}; required "
        f"by {example.place}. Set it in a file that comes later, or with "
        f"--gin_param=\"{example.name} = ...\".")
  macros = {"/".join(filter(None, (b.scope, b.name)))
            for b in bindings if b.is_macro}
  for binding in bindings:
    for value in flat(binding.value):
      # A macro with a dot is a constant of some module.
      if isinstance(value, Macro) and "." not in value and value not in macros:
        raise ValueError(
            f"gin: a macro must have a value, with macro={value}"
            f"{near(value, macros)}. Correct it in {binding.place}, or set it "
            f"with --gin_param=\"{value} = ...\".")


def check_command_line(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a macro of --gin_param that nothing uses.

  One in a file may be for some models only; one on the command line is there to
  change something.

  Args:
    bindings: of a run, and of what it runs afterwards.

  Raises:
    ValueError: naming the first, with the nearest that is used.
  """
  used = {value for binding in bindings for value in flat(binding.value)
          if isinstance(value, Macro)}
  for binding in bindings:
    if (binding.file == COMMAND_LINE and binding.is_macro
        and binding.name not in used):
      raise ValueError(
          "gin: a macro of --gin_param must be used, with "
          f"macro={binding.name}{near(binding.name, used)}. Correct it, or "
          "leave it out.")


def flat(value: Any) -> Iterator[Any]:
  """The leaves of a value."""
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple):
    for part in value:
      yield from flat(part)
  else:
    yield value
