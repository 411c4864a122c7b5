"""Refuses an option with a value that it cannot have, in the house's words."""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


def whole(who: str, *, at_least: int = 1, **options: Any) -> None:
  """Raises ValueError unless each option is a whole number, large enough.

  Args:
    who: the configurable whose options these are.
    at_least: the smallest legal value.
    **options: by name.
  """
  for name, value in options.items():
    if not _is(value, numbers.Integral) or value < at_least:
      refuse(who, name, value, f"a whole number, at least {at_least}")


def number(
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
    above: what it must be greater than.
    at_least: its smallest legal value.
    below: what it must be less than.
    at_most: its largest legal value.
    **options: by name.
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


def flag(who: str, **options: Any) -> None:
  """Raises ValueError unless each option is True or False."""
  for name, value in options.items():
    if not isinstance(value, bool):
      refuse(who, name, value, "True or False")


def one_of(who: str, known: Iterable[Any], **options: Any) -> None:
  """Raises ValueError unless each option has one of the `known` values."""
  known = list(known)
  for name, value in options.items():
    if not any(value is k or type(value) is type(k) and value == k
               for k in known):
      near = difflib.get_close_matches(
          str(value), [str(k) for k in known], n=1)
      refuse(who, name, value,
             f"one of {', '.join(str(k) for k in known)}",
             f", nearest: {near[0]}" if near else "")


def instance(who: str, cls: type, example: str, **options: Any) -> None:
  """Raises ValueError unless each option is an object of a class.

  Args:
    who: the configurable whose options these are.
    cls: the class.
    example: how gin says one, such as "@SwitchRouter()".
    **options: by name.
  """
  for name, value in options.items():
    if not isinstance(value, cls):
      article = "an" if cls.__name__[0] in "AEIOU" else "a"
      refuse(who, name, value, f"{article} {cls.__name__}", to=f" to {example}")


def refuse(
    who: str, name: str, value: Any, what: str, more: str = "", to: str = ""
) -> None:
  """Raises ValueError: `who`'s option `name` must be `what`."""
  raise ValueError(
      f"{who}: {name} must be {what}, with {name}={value!r}{more}. Set "
      f"{who}.{name}{to}.")


def _is(value: Any, kind: type) -> bool:
  """Whether it is a number of that kind; True and False are none."""
  return isinstance(value, kind) and not isinstance(value, bool)
