"""Initialises a student from the weights of its teacher (section 4.2).

A model is a sequence of sublayers. A Switch model has longer blocks than its
dense twin and so names its sublayers differently. Sublayers are therefore
matched by their place in the stack. Weights that do not depend on the experts
have the same shape in both models and are copied. Where the teacher has
experts, the student's feed-forward layer starts fresh, from the mean of the
experts, or from the most used expert.
"""

import dataclasses
import re
from collections.abc import Mapping

import tensorflow.compat.v1 as tf

FRESH, MEAN, MOST_USED = "fresh", "mean_expert", "most_used_expert"
WAYS = (FRESH, MEAN, MOST_USED)

_SUBLAYER = re.compile(r"(\w+)/block_(\d+)/layer_(\d+)/(.+)")
# Scopes of a dense feed-forward layer and of the Switch layer in its place.
_DENSE, _SWITCH = "DenseReluDense", "SwitchFFN"

Shapes = Mapping[str, tuple[int, ...]]
# Stack ("" outside of both stacks), index of the sublayer in the stack, rest of
# the name.
Place = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Source:
  """The source of the initial value of a student's variable.

  Attributes:
    variable: name of the teacher's variable.
    experts: None to copy the variable; MEAN or MOST_USED to average its experts
      (first axis), or to copy one of them.
  """

  variable: str
  experts: str | None = None


@dataclasses.dataclass(frozen=True)
class Start:
  """The initial values of a student's variables.

  Attributes:
    taken: variable -> source of its value.
    fresh: variable -> the reason why it has no source.
  """

  taken: dict[str, Source]
  fresh: dict[str, str]


def match(student: Shapes, teacher: Shapes, replaced: str = FRESH) -> Start:
  """Finds the teacher's variable for each of the student's.

  Args:
    student: trainable variable of the student -> shape.
    teacher: variable of the teacher, without the scope `teacher/` -> shape.
    replaced: initial value of a feed-forward layer where the teacher has
      experts, one of `WAYS`.

  Returns:
    The source of each variable, or the reason why it starts fresh.

  Raises:
    ValueError: if no variable has a source.
  """
  student_places, teacher_places = _places(student), _places(teacher)
  depths = _depths(student_places), _depths(teacher_places)
  at = {place: name for name, place in teacher_places.items()}
  start = Start({}, {})
  for name, shape in student.items():
    stack, *_ = place = student_places[name]
    if depths[0][stack] != depths[1].get(stack):
      found = (f"{depths[0][stack]} sublayers in the student's {stack}, "
               f"{depths[1].get(stack, 0)} in the teacher's")
    else:
      found = _source(place, shape, at, teacher, replaced)
    if isinstance(found, Source):
      start.taken[name] = found
    else:
      start.fresh[name] = found
  if not start.taken:
    name, why = next(iter(start.fresh.items()))
    raise ValueError(
        "distillation: some of the teacher's variables must fit the student, "
        f"with fitting=0 of {len(student)}; {name}: {why}. Give the student "
        "the teacher's sizes, or set distillation.copy_weights = False.")
  return start


def _places(shapes: Shapes) -> dict[str, Place]:
  """Returns the place of each variable."""
  parts = {name: _SUBLAYER.fullmatch(name) for name in shapes}
  lengths = {}  # stack -> sublayers per block
  for found in filter(None, parts.values()):
    lengths[found[1]] = max(lengths.get(found[1], 0), int(found[3]) + 1)
  return {
      name: (found[1], int(found[2]) * lengths[found[1]] + int(found[3]),
             found[4]) if found else ("", 0, name)
      for name, found in parts.items()}


def _depths(places: Mapping[str, Place]) -> dict[str, int]:
  """Returns the number of sublayers of each stack."""
  depths = {}
  for stack, index, _ in places.values():
    depths[stack] = max(depths.get(stack, 0), index + 1)
  return depths


def _source(
    place: Place, shape: tuple[int, ...], at: Mapping[Place, str],
    teacher: Shapes, replaced: str,
) -> Source | str:
  """Returns the source of a variable, or the reason why it has none."""
  stack, index, rest = place
  if place in at:
    name = at[place]
    if tuple(teacher[name]) == tuple(shape):
      return Source(name)
    return (f"{list(shape)} in the student, {list(teacher[name])} in the "
            f"teacher's {name}")
  experts = at.get((stack, index, rest.replace(_DENSE, _SWITCH, 1)))
  if experts is None or not rest.startswith(_DENSE):
    return "the teacher has no variable at this place"
  if replaced == FRESH:
    return f"the teacher has experts here: {experts}"
  if tuple(teacher[experts][1:]) != tuple(shape):
    return (f"{list(shape)} in the student, {list(teacher[experts])} in the "
            f"teacher's {experts}")
  return Source(experts, replaced)


def assign(
    variables: Mapping[str, tf.Variable], start: Start, checkpoint: str,
    used: Mapping[str, int],
) -> None:
  """Gives the student's variables initial values from a checkpoint.

  The run reads these values when it initialises its variables, not when it
  resumes from a checkpoint of its own.

  Args:
    variables: the student's variables, by name.
    start: result of `match`.
    checkpoint: path of the teacher's checkpoint.
    used: sublayer of the teacher, such as "encoder/block_000/layer_003" -> its
      most used expert; for `MOST_USED`.
  """
  copied = {source.variable: variables[name]
            for name, source in start.taken.items() if source.experts is None}
  tf.train.init_from_checkpoint(checkpoint, copied)
  for name, source in start.taken.items():
    if source.experts is None:
      continue
    variable = variables[name]
    experts = tf.raw_ops.RestoreV2(
        prefix=checkpoint, tensor_names=[source.variable],
        shape_and_slices=[""], dtypes=[variable.dtype.base_dtype])[0]
    if source.experts == MEAN:
      value = tf.reduce_mean(experts, axis=0)
    else:
      sublayer = source.variable.split(f"/{_SWITCH}/")[0]
      value = experts[used[sublayer]]
    value = tf.ensure_shape(value, variable.shape)
    # tf.train.init_from_checkpoint does the same.
    variable._initializer_op = variable.assign(value)


def lines(start: Start) -> list[str]:
  """Describes a student's initial weights, with a line for each reason.

  Args:
    start: result of `match`.

  Returns:
    A line that counts the copied variables, then one per reason for variables
    that start fresh.
  """
  total = len(start.taken) + len(start.fresh)
  found = [f"a new student takes {len(start.taken)} of {total} variables from "
           "the teacher"]
  reasons = {}
  for name, why in start.fresh.items():
    reasons.setdefault(why, []).append(name)
  return found + [f"fresh: {', '.join(names)} ({why})"
                  for why, names in reasons.items()]
