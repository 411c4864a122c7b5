"""Reads gin files without running them, and finds what gin itself accepts.

gin binds whatever it is told: a scope that nobody enters, a macro that nobody
reads. Both do nothing, and the run is another one than was meant.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config_parser

# Scopes that T5, mesh_tensorflow and this project enter by name. Any other must
# be that of a reference, as in `@train/schedule()`.
SCOPES = frozenset({"attention", "decoder", "encoder", "student", "teacher"})
REQUIRED = "gin.REQUIRED"

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
  """`@scope/name` or `@scope/name()`, as a value."""


class _AsWritten(config_parser.ParserDelegate):
  """Leaves macros and references unresolved."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name)

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
    found += [binding for binding in _statements(param, "--gin_param", folders)]
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


def check(bindings: Sequence[Binding], upstream: Sequence[str] = ()) -> None:
  """Raises ValueError for what gin would accept and should not.

  Args:
    bindings: of a run, in order, T5's defaults first.
    upstream: folders of files in which any scope and any binding may stand.

  Raises:
    ValueError: naming the first mistake, with the nearest legal name.
  """
  check_scopes(bindings, upstream)
  check_folders(bindings, upstream)
  check_macros(bindings)


def check_scopes(
    bindings: Sequence[Binding], upstream: Sequence[str] = ()) -> None:
  """Raises ValueError for a scope that nothing enters; see `check`."""
  legal = set(SCOPES)
  for binding in bindings:
    for value in _flat(binding.value):
      if isinstance(value, Reference):
        legal |= set(value.split("/")[:-1])
  for binding in _ours(bindings, upstream):
    for scope in filter(None, binding.scope.split("/")):
      if scope not in legal:
        raise ValueError(
            f"gin: a scope must be one that is entered, with scope={scope}"
            f"{_near(scope, legal)}, binding={binding.scope}/{binding.name}. "
            f"Correct it in {binding.place}.")


def check_folders(
    bindings: Sequence[Binding], upstream: Sequence[str] = ()) -> None:
  """Raises ValueError for a binding in the wrong folder; see `check`."""
  for binding in _ours(bindings, upstream):
    kind = os.path.basename(os.path.dirname(binding.file))
    right = _right_folder(binding.name, kind)
    if right != kind:
      raise ValueError(
          f"gin: a file of {kind}/ must not bind what belongs to {right}/, "
          f"with binding={binding.name}. Move it from {binding.place} to a "
          f"file of {right}/ or of experiments/.")


def _ours(
    bindings: Sequence[Binding], upstream: Sequence[str]) -> list[Binding]:
  return [b for b in bindings if not b.file.startswith(tuple(upstream))]


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
  last = {(binding.scope, binding.name): binding for binding in bindings}
  unset = [b for b in last.values() if b.value == Macro(REQUIRED)]
  if unset:
    names = ", ".join(sorted(b.name for b in unset))
    example = unset[0]
    raise ValueError(
        f"gin: every required value must be set, with unset={names}; required "
        f"by {example.place}. Set it in a file that comes later, or with "
        f"--gin_param=\"{example.name} = ...\".")
  macros = {"/".join(filter(None, (b.scope, b.name)))
            for b in bindings if b.is_macro}
  for binding in bindings:
    for value in _flat(binding.value):
      # A macro with a dot is a constant of some module.
      if isinstance(value, Macro) and "." not in value and value not in macros:
        raise ValueError(
            f"gin: a macro must have a value, with macro={value}"
            f"{_near(value, macros)}. Correct it in {binding.place}, or set it "
            f"with --gin_param=\"{value} = ...\".")


def _flat(value: Any) -> Iterator[Any]:
  """The leaves of a value."""
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple):
    for part in value:
      yield from _flat(part)
  else:
    yield value


def _near(name: str, known: set[str]) -> str:
  """', nearest: a, b'."""
  near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
  return f", nearest: {', '.join(near)}" if near else ""
