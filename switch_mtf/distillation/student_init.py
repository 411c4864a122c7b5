"""Which weights a student takes over from its teacher (section 4.2).

A model is a sequence of sublayers. A Switch model names them otherwise than its
dense twin, because its blocks are longer, so they are matched by their place in
the stack. What does not depend on the experts has the same shape in both and is
copied; what stands where the teacher has experts starts fresh, or from the mean
of the experts, or from one of them.
"""

import dataclasses
import re
from collections.abc import Mapping

import tensorflow.compat.v1 as tf

FRESH, MEAN, MOST_USED = "fresh", "mean_expert", "most_used_expert"
WAYS = (FRESH, MEAN, MOST_USED)

_SUBLAYER = re.compile(r"(\w+)/block_(\d+)/layer_(\d+)/(.+)")
# What replaces a Switch layer, and the names of the weights that both have.
_DENSE, _SWITCH = "DenseReluDense", "SwitchFFN"

Shapes = Mapping[str, tuple[int, ...]]
# Stack, sublayer of the stack, rest of the name; stack "" outside of all.
Place = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the initial value of a student's variable comes from.

  Attributes:
    variable: of the teacher.
    experts: None to copy it; MEAN or MOST_USED of its first axis.
  """

  variable: str
  experts: str | None = None


@dataclasses.dataclass(frozen=True)
class Start:
  """How each variable of a student starts.

  Attributes:
    taken: variable -> where its value comes from.
    fresh: variable -> why nothing is taken over.
  """

  taken: dict[str, Source]
  fresh: dict[str, str]


def match(student: Shapes, teacher: Shapes, replaced: str = FRESH) -> Start:
  """Finds the teacher's variable for each of the student's.

  Args:
    student: trainable variable -> shape.
    teacher: the same, of the teacher; without a scope in front.
    replaced: how feed-forward layers start where the teacher has experts, one
      of `WAYS`.

  Returns:
    How each starts.

  Raises:
    ValueError: if nothing could be taken over.
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
        "distillation: a variable of the teacher must fit the student, with "
        f"fitting=0 of {len(student)}; {name}: {why}. Give the student the "
        "teacher's sizes, or set distillation.copy_weights = False.")
  return start


def _places(shapes: Shapes) -> dict[str, Place]:
  """Variable -> its place."""
  parts = {name: _SUBLAYER.fullmatch(name) for name in shapes}
  lengths = {}  # sublayers of a block, by stack
  for found in filter(None, parts.values()):
    lengths[found[1]] = max(lengths.get(found[1], 0), int(found[3]) + 1)
  return {
      name: (found[1], int(found[2]) * lengths[found[1]] + int(found[3]),
             found[4]) if found else ("", 0, name)
      for name, found in parts.items()}


def _depths(places: Mapping[str, Place]) -> dict[str, int]:
  """Sublayers of each stack."""
  depths = {}
  for stack, index, _ in places.values():
    depths[stack] = max(depths.get(stack, 0), index + 1)
  return depths


def _source(
    place: Place, shape: tuple[int, ...], at: Mapping[Place, str],
    teacher: Shapes, replaced: str,
) -> Source | str:
  """Where one variable's value comes from, or why from nowhere."""
  stack, index, rest = place
  if place in at:
    name = at[place]
    if tuple(teacher[name]) == tuple(shape):
      return Source(name)
    return (f"{list(shape)} in the student, {list(teacher[name])} in the "
            f"teacher's {name}")
  experts = at.get((stack, index, rest.replace(_DENSE, _SWITCH, 1)))
  if experts is None or not rest.startswith(_DENSE):
    return "the teacher has none at this place"
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
  """Makes the student's variables start as found.

  Values come from the checkpoint when the run initialises its variables: not
  when it goes on from a checkpoint of its own.

  Args:
    variables: of the student, by name.
    start: how each starts.
    checkpoint: of the teacher.
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
    # As tf.train.init_from_checkpoint does.
    variable._initializer_op = variable.assign(value)


def lines(start: Start) -> list[str]:
  """What a run starts with, in words: a line for each reason.

  Args:
    start: of its student.
  """
  total = len(start.taken) + len(start.fresh)
  found = [f"a new student takes {len(start.taken)} of {total} variables from "
           "the teacher"]
  reasons = {}
  for name, why in start.fresh.items():
    reasons.setdefault(why, []).append(name)
  return found + [f"fresh: {', '.join(names)} ({why})"
                  for why, names in reasons.items()]
