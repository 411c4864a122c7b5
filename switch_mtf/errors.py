"""Builds error messages, checks options, and explains upstream's errors.

Every message has the form

  <who>: <what must hold>, with <name=value, ...>. <What to change.>

Three parts: words that messages share; checks of options; better errors for
those that gin, seqio, T5 and mesh_tensorflow raise. Importing this module
imports neither TensorFlow nor anything that needs it.
"""

import difflib
import inspect
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Words.


def near(
    name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6
) -> str:
  """Returns ', nearest: a, b', or '' if no known name resembles `name`.

  Args:
    name: an unknown name.
    known: the legal names.
    count: maximum number of names.
    cutoff: minimum similarity, from 0 to 1.
  """
  found = difflib.get_close_matches(
      name, sorted(known), n=count, cutoff=cutoff)
  return f", nearest: {', '.join(found)}" if found else ""


def some(names: Iterable[str], most: int = 4) -> str:
  """Returns 'a, b and 3 more': the first `most` names, and the number left."""
  names = list(names)
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest


def counted(what: str, names: Sequence[str], most: int) -> str:
  """Returns 'what (12): a, b and 10 more'."""
  return f"{what} ({len(names)}): {some(names, most)}"


def either(values: Iterable[Any]) -> str:
  """Returns '2, 3 or 4'."""
  *head, last = [str(value) for value in values]
  return f"{', '.join(head)} or {last}" if head else last


def legal_divisors(size: int, near: int, count: int = 4) -> list[int]:
  """Returns up to `count` divisors of `size` nearest to `near`, sorted."""
  divisors = [d for d in range(1, size + 1) if size % d == 0]
  return sorted(sorted(divisors, key=lambda d: (abs(d - near), d))[:count])


# Options.


def require_whole(who: str, *, at_least: int = 1, **options: Any) -> None:
  """Raises ValueError unless each option is a whole number, large enough.

  Args:
    who: the configurable whose options these are.
    at_least: the smallest legal value.
    **options: name of an option -> value.
  """
  for name, value in options.items():
    if not _is(value, numbers.Integral) or value < at_least:
      refuse(who, name, value, f"a whole number, at least {at_least}")


def require_number(
    who: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    **options: Any,
) -> None:
  """Raises ValueError unless each option is a finite number in an interval.

  Args:
    who: the configurable whose options these are.
    above: lower limit, itself illegal.
    at_least: smallest legal value.
    below: upper limit, itself illegal.
    at_most: largest legal value.
    **options: name of an option -> value.
  """
  limits = [
      (above, "greater than", lambda v: v > above),
      (at_least, "at least", lambda v: v >= at_least),
      (below, "less than", lambda v: v < below),
      (at_most, "at most", lambda v: v <= at_most)]
  limits = [limit for limit in limits if limit[0] is not None]
  what = " and ".join(f"{words} {limit}" for limit, words, _ in limits)
  for name, value in options.items():
    if (not _is(value, numbers.Real) or not math.isfinite(value)
        or not all(is_legal(value) for *_, is_legal in limits)):
      refuse(who, name, value, f"a finite number, {what}".rstrip(", "))


def require_flag(who: str, **options: Any) -> None:
  """Raises ValueError unless each option is True or False."""
  for name, value in options.items():
    if not isinstance(value, bool):
      refuse(who, name, value, "True or False")


def require_one_of(who: str, known: Iterable[Any], **options: Any) -> None:
  """Raises ValueError unless each option has one of the `known` values."""
  known = list(known)
  for name, value in options.items():
    if not any(value is k or type(value) is type(k) and value == k
               for k in known):
      names = [str(k) for k in known]
      refuse(who, name, value, f"one of {', '.join(names)}",
             near(str(value), names, count=1))


def require_instance(who: str, cls: type, example: str, **options: Any) -> None:
  """Raises ValueError unless each option is an object of a class.

  Args:
    who: the configurable whose options these are.
    cls: the class.
    example: gin text for such an object, such as "@SwitchRouter()".
    **options: name of an option -> value.
  """
  for name, value in options.items():
    if not isinstance(value, cls):
      article = "an" if cls.__name__[0] in "AEIOU" else "a"
      refuse(who, name, value, f"{article} {cls.__name__}", to=f" to {example}")


def refuse(
    who: str, name: str, value: Any, what: str, more: str = "", to: str = ""
) -> None:
  """Raises ValueError, saying that `who`'s option `name` must be `what`."""
  raise ValueError(
      f"{who}: {name} must be {what}, with {name}={value!r}{more}. Set "
      f"{who}.{name}{to}.")


def _is(value: Any, kind: type) -> bool:
  """Returns whether a value is of a kind of number; booleans are not."""
  return isinstance(value, kind) and not isinstance(value, bool)


# Errors of upstream packages.


def user_message(error: Exception) -> str | None:
  """Returns what to tell the user of an error, None to show its traceback."""
  better = (explain_gin_error(error) or explain_task_error(error)
            or explain_batch_error(error) or explain_axis_error(error)
            or explain_fields_error(error)
            or explain_error_of_a_step(error) or error)
  text = str(better).split("\n  In call to configurable")[0]
  return text if re.match(r"[\w. ]+: .* must ", text, re.DOTALL) else None


def explain_error_of_a_step(error: Exception) -> ValueError | None:
  """Returns the error of Python code or a check inside a graph, or None."""
  failed = re.search(r"assertion failed: ((?:\[[^\]]*\] ?)+)", str(error))
  if failed:
    said = " ".join(re.findall(r"\[([^\]]*)\]", failed[1]))
    if " must " in said:
      return ValueError(said.replace(" .", "."))
  raised = re.search(r"ValueError: (\w+: .*?)\s*\nTraceback ", str(error),
                     re.DOTALL)
  return raised and ValueError(raised[1])


def explain_task_error(error: Exception) -> ValueError | None:
  """Returns a better error for an unknown or unfinished task, or None."""
  missing = re.search(
      r"missing expected output feature after preprocessing: (\w+)", str(error))
  if missing:
    return ValueError(
        "seqio: the preprocessors of a task must make every feature of its "
        f"output_features, with missing={missing[1]}. Correct the task: rename "
        "fields with its first preprocessor.")
  unknown = re.search(r"No Task or Mixture found with name '([^']+)'",
                      str(error))
  if not unknown:
    return None
  import seqio  # already imported, since seqio raised the error
  name = unknown.group(1)
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  return ValueError(
      "seqio: the task or mixture must be registered, with "
      f"mixture_or_task_name={name}{near(name, known)}. Correct MIXTURE_NAME, "
      "or import the module that registers it with --module_import.")


def explain_fields_error(error: Exception) -> ValueError | None:
  """Returns a better error for a line without the fields wanted, or None."""
  csv = re.search(r"Expect (\d+) fields but have (\d+) in record", str(error))
  split = re.search(r"slice index (\d+) of dimension 0 out of bounds",
                    str(error))
  if not csv and not split:
    return None
  from switch_mtf.upstream import task_files  # has read the files
  number = int(csv[1]) if csv else int(split[1]) + 1
  found = int(csv[2]) if csv else None
  where = task_files.where_fields_lack(number, found)
  if split and not where:
    return None  # of something else
  numbers = f"wanted={number}" + ("" if found is None else f", found={found}")
  return ValueError(
      "task: each line must have as many fields as its parser wants, with "
      f"{numbers}{where and f', {where}'}. Correct the file; a blank line is "
      "no example.")


def explain_batch_error(error: Exception) -> ValueError | None:
  """Returns a better error for a batch not of whole sequences, or None."""
  undivided = re.match(r"(\d+) is not divisible by (\d+)\n", str(error))
  if not undivided:
    return None
  tokens, length = map(int, undivided.groups())
  return ValueError(
      "utils.run: the tokens of a batch must be whole sequences, with "
      f"tokens={tokens}, longest sequence={length}. Set utils.run.batch_size "
      f"to a number of sequences, or its tokens to a multiple of {length}, "
      f"such as {max(tokens // length, 1) * length}.")


def explain_gin_error(error: Exception) -> ValueError | None:
  """Returns a better error for a binding with an unknown name, or None."""
  text = str(error)
  unset = re.search(
      r"Required bindings for `(\w+)` not provided in config: \['(\w+)'", text)
  if unset:
    return ValueError(
        "gin: every required value must be set, with unset="
        f"{unset[1]}.{unset[2]}. Bind it, or add what is missing of a model, a "
        "layout and a run: --gin_file=gin/layouts/single.gin, "
        "--gin_file=gin/runs/pretrain.gin or others.")
  unknown = re.search(
      r"No configurable matching (?:reference )?'@?([\w./]+)(?:\(\))?'", text)
  if unknown:
    name = unknown.group(1)
    nearest = near(name.rsplit(".", 1)[-1], _configurables())
    return ValueError(
        f"gin: a binding must name a configurable, with name={name}{nearest}. "
        "Correct the binding, or import its module with --module_import. "
        f"{_where(text)}")
  unknown = re.search(
      r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text)
  if unknown:
    name, parameter = unknown.groups()
    return ValueError(
        f"gin: a binding must name a parameter of {name}, with "
        f"parameter={parameter}{near(parameter, _parameters(name))}. Correct "
        f"the binding {name}.{parameter}. {_where(text)}")
  return None


def _configurables() -> list[str]:
  """Returns the names of all gin configurables, short and with their module."""
  import gin
  registry = gin.config._REGISTRY  # gin offers no public list
  full = [selector for selector, _ in registry.items()]
  return [*full, *{name.rsplit(".", 1)[-1] for name in full}]


def _parameters(name: str) -> list[str]:
  """Returns the names of the parameters of a configurable."""
  import gin
  wrapped = gin.config._REGISTRY.get_match(name).wrapped
  return list(inspect.signature(wrapped).parameters)


def _where(text: str) -> str:
  """Returns the place 'In file ... line 3' that gin appends, or ''."""
  place = re.search(r"In (file|bindings string).*", text, re.DOTALL)
  return " ".join(place.group(0).split()) if place else ""


class _Dim(NamedTuple):
  """The part of an mtf.Dimension that errors name."""

  name: str
  size: int


def explain_mesh_error(
    error: Exception, mesh_shape: Any, layout_rules: Any
) -> ValueError | None:
  """Returns a better error for a mesh that does not fit a tensor, or None."""
  found = re.search(
      r"(not divisible by mesh dimension size|may not map to the same Mesh).*"
      r"tensor_shape=Shape\[(.*?)\]", str(error), re.DOTALL)
  if not found:
    return None
  dims = [_Dim(name, int(size)) for name, size in re.findall(
      r"(\w+)=(\d+)", found.group(2))]
  axes = [layout_rules.tensor_dimension_to_mesh_axis(dim, mesh_shape)
          for dim in dims]
  split = [(dim, mesh_shape.dims[axis])
           for dim, axis in zip(dims, axes, strict=True) if axis is not None]
  for number, (dim, ways) in enumerate(split):
    if dim.size % ways.size:
      return _undivided(dim, ways)
    for other, other_ways in split[:number]:
      if other_ways == ways:
        return ValueError(
            "run_t5: dimensions of one tensor must be split by different mesh "
            f"axes, with dimensions={other.name}, {dim.name}, axis={ways.name}."
            " Change utils.run.layout_rules.")
  return None


def explain_axis_error(error: Exception) -> ValueError | None:
  """Returns a better error for T5's check of a mesh axis, or None."""
  found = re.match(
      r"Mesh dimension \((\d+)\) must divide tensor dimension "
      r"\(Dimension\(name='(\w+)', size=(\d+)\)", str(error))
  if not found:
    return None
  ways, name, size = found.groups()
  return _undivided(_Dim(name, int(size)),
                    _Dim(f"that of {name}", int(ways)))


def _undivided(dim: _Dim, ways: _Dim) -> ValueError:
  """Returns the error for a mesh axis that does not divide a dimension."""
  below = dim.size - dim.size % ways.size
  sizes = [str(s) for s in (below, below + ways.size) if s]
  axes = [str(d) for d in legal_divisors(dim.size, ways.size)]
  return ValueError(
      "run_t5: each mesh axis must divide the dimension that it splits, with "
      f"dimension {dim.name}={dim.size}, mesh axis {ways.name}={ways.size}. "
      f"Give {dim.name} the size {' or '.join(sizes)}, or {ways.name} one of "
      f"{', '.join(axes)} in utils.run.mesh_shape, or take {dim.name} out of "
      "utils.run.layout_rules.")
