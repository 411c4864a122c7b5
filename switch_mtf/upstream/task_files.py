"""Patches for tasks on files of lines: wrong files and lines are refused.

A file is looked through before it is read: that it is there, that it is UTF-8,
and, where T5's parsers read it, that every line holds the fields they want.
"""

import csv
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gin
import tensorflow.compat.v1 as tf

from switch_mtf.upstream import text_files


class Fields(NamedTuple):
  """The fields that a parser wants of a line.

  Attributes:
    number: number of fields.
    exact: whether further fields are an error; if not, they are one only in a
      file whose first line has none.
    delimiter: what separates them.
    quoted: whether quotes may enclose a delimiter.
  """

  number: int
  exact: bool = True
  delimiter: str = "\t"
  quoted: bool = False

  def count(self, line: bytes) -> int:
    """Returns how many fields TensorFlow finds in a line."""
    if not line:
      return 0
    if not self.quoted:
      return line.count(self.delimiter.encode()) + 1
    text = line.decode("utf-8", "replace")
    return len(next(csv.reader([text], delimiter=self.delimiter)))

  def fit(self, found: int) -> bool:
    """Returns whether a line with so many fields can be parsed."""
    return found == self.number if self.exact else found >= self.number

  def __str__(self) -> str:
    least = "" if self.exact else "at least "
    noun = "field" if self.number == 1 else "fields"
    between = "a tab" if self.delimiter == "\t" else repr(self.delimiter)
    most = "" if self.exact else ", and no more if the first line has no more"
    return f"{least}{self.number} {noun}, separated by {between}{most}"


@dataclasses.dataclass
class _Reading:
  """A task that is being read: its files, and whether they are checked."""

  who: str
  files: list[str]
  header_lines: int
  checked: bool = False


_readings: list[_Reading] = []
_read: dict[str, str] = {}  # file -> the task that reads it
_said: set[tuple] = set()  # files that are not UTF-8


def apply() -> None:
  """Applies the patches of this file."""
  check_tasks()
  check_parsed_lines()
  check_tsv_dataset()


def check_tasks() -> None:
  """Checks the files of a task before it is read.

  Upstream reads files while it trains: a missing one is an error of the graph,
  and what is not UTF-8 becomes unknown pieces. Can be removed when
  `seqio.TextLineDataSource` does otherwise.
  """
  import seqio
  upstream = seqio.Task.get_dataset
  signature = inspect.signature(upstream)

  @functools.wraps(upstream)
  def get_dataset(self, *args, **kwargs):
    call = signature.bind(self, *args, **kwargs)
    call.apply_defaults()
    reading = _reading(self, call.arguments["split"],
                       call.arguments["use_cached"])
    if reading is None:
      return upstream(self, *args, **kwargs)
    _readings.append(reading)
    try:
      examples = upstream(self, *args, **kwargs)
    finally:
      _readings.pop()
    if not reading.checked:
      _say_what_is_not_utf8(reading)
    return examples

  seqio.Task.get_dataset = get_dataset


def _reading(task: Any, split: str, use_cached: bool) -> _Reading | None:
  """Returns what is read if a task reads local lines, else None."""
  import seqio
  if use_cached or not isinstance(task.source, seqio.TextLineDataSource):
    return None
  files = task.source.list_shards(split)
  if not files:
    raise ValueError(
        f"task {task.name}: a split must have files, with split={split}, "
        f"pattern={task.source._split_to_filepattern[split]}. Correct the "
        "task's split_to_filepattern.")
  if any("://" in path for path in files):
    return None
  for path in files:
    reason = text_files.why_unreadable(path)
    if reason:
      raise ValueError(
          f"task {task.name}: the files of a split must be text files, with "
          f"split={split}, file={path}, which {reason}. Correct the task's "
          "split_to_filepattern.")
  _read.update({path: f"task {task.name}" for path in files})
  return _Reading(f"task {task.name}", list(files),
                  task.source._skip_header_lines)


def check_parsed_lines() -> None:
  """Checks the fields of every line before T5's parsers parse the first.

  Upstream fails at the first wrong line, which may be hours later, and names
  neither file nor line. Can be removed when `tf.io.decode_csv` can say where a
  record stands.
  """
  from t5.data import preprocessors
  for name, fields in (("parse_tsv", _fields_of_parse_tsv),
                       ("preprocess_tsv", _fields_of_preprocess_tsv)):
    setattr(preprocessors, name,
            _with_check(getattr(preprocessors, name), fields))


def _with_check(parser: Callable, fields: Callable) -> Callable:
  """Returns a parser that checks the files of the task that is read."""
  signature = inspect.signature(inspect.unwrap(parser))

  @functools.wraps(parser)
  def parse(dataset, *args, **kwargs):
    if _readings:
      call = signature.bind(dataset, *args, **kwargs)
      call.apply_defaults()
      reading = _readings[-1]
      reading.checked = True
      check_lines(reading.who, reading.files, fields(**call.arguments),
                  reading.header_lines)
      if any(_first(path, 3) == text_files.BYTE_ORDER_MARK
             for path in reading.files):
        dataset = dataset.map(_without_mark)
    return parser(dataset, *args, **kwargs)

  return parse


def _without_mark(line: tf.Tensor) -> tf.Tensor:
  """Returns a line without the byte order mark of its file."""
  return tf.strings.regex_replace(line, "^\\x{FEFF}", "")


def _fields_of_parse_tsv(field_names, field_delim, field_columns, **unused_args
                         ) -> Fields:
  """Returns what `parse_tsv` wants: all columns that it selects."""
  columns = field_columns or range(len(field_names or ["inputs", "targets"]))
  return Fields(max(columns) + 1, exact=False, delimiter=field_delim)


def _fields_of_preprocess_tsv(
    field_delim, num_fields, field_names, use_quote_delim, **unused_args
) -> Fields:
  """Returns what `preprocess_tsv` wants: as many fields as it names."""
  number = num_fields if field_names is None else len(field_names)
  return Fields(number, delimiter=field_delim, quoted=use_quote_delim)


def check_lines(
    who: str, files: Iterable[str], fields: Fields, header_lines: int = 0
) -> None:
  """Raises ValueError unless every line of the files holds the fields.

  Args:
    who: the task, for errors.
    files: paths of local files.
    fields: what each line must hold.
    header_lines: number of lines of each file that are no examples.
  """
  for path in files:
    place, wrong, shown = _scan(path, _state(path), fields, header_lines)
    if place:
      raise text_files.no_text(who, "file", path, place, _first(path, 2))
    if wrong:
      more = f" and {wrong - len(shown)} more" if wrong > len(shown) else ""
      raise ValueError(
          f"{who}: each line must have {fields}, with file={path}, "
          f"{', '.join(shown)}{more}. Correct {path}; a blank line is no "
          "example.")


def where_fields_lack(number: int, found: int | None) -> str:
  """Returns what is known of a record that TensorFlow could not parse.

  For tasks that parse their lines themselves.

  Args:
    number: number of fields that the parser wanted.
    found: number of fields of the record; None if it had too few.

  Returns:
    'task=NAME, file=PATH, line=3 (blank)' for each file that has been read and
      has such a line, or ''.
  """
  places = []
  for path, who in _read.items():
    if not os.path.isfile(path):
      continue
    for delimiter in "\t,":
      fields = Fields(number, exact=found is not None, delimiter=delimiter)
      _, wrong, shown = _scan(path, _state(path), fields, 0)
      words = "(blank" if not found else f"({found} field"
      if wrong and (found is None or any(words in line for line in shown)):
        places.append(f"{who}, file={path}, {', '.join(shown)}")
        break
  return "; ".join(places)


def _first(path: str, number: int) -> bytes:
  """Returns the first bytes of a file."""
  with open(path, "rb") as f:
    return f.read(number)


def _state(path: str) -> tuple[int, int]:
  """Returns time and size of a file, which change when its content does."""
  state = os.stat(path)
  return state.st_mtime_ns, state.st_size


@functools.lru_cache
def _scan(
    path: str, unused_state: tuple[int, int], fields: Fields | None,
    header_lines: int
) -> tuple[str, int, list[str]]:
  """Returns what is wrong in a file of lines.

  Args:
    path: path of the file.
    unused_state: its state, so that a changed file is read again.
    fields: what each line must hold; None to look at the encoding only.
    header_lines: number of lines that are skipped.

  Returns:
    The first place that is not UTF-8, or ''; how many lines lack fields; words
    for the first of these.
  """
  wrong, shown, first = 0, [], 0
  with open(path, "rb") as f:
    for number, line in enumerate(f, 1):
      place = "" if line.isascii() else text_files.not_utf8(line)
      if place:
        return place.replace("line=1,", f"line={number},"), 0, []
      if fields is None or number <= header_lines:
        continue
      found = fields.count(line.replace(b"\r", b"").rstrip(b"\n"))
      first = first or found
      # A text with a delimiter of its own would lose its end.
      if not fields.fit(found) or found > first == fields.number:
        wrong += 1
        if len(shown) < 3:
          shown.append(_words(number, found, line))
  return "", wrong, shown


def _words(number: int, found: int, line: bytes) -> str:
  """Returns 'line=3 (blank)' or 'line=3 (1 field: 'no tab')'."""
  if not found:
    return f"line={number} (blank)"
  text = line.decode().strip("\r\n")
  text = text if len(text) <= 40 else f"{text[:37]}..."
  noun = "field" if found == 1 else "fields"
  return f"line={number} ({found} {noun}: {text!r})"


def _say_what_is_not_utf8(reading: _Reading) -> None:
  """Prints where a file is not UTF-8, for tasks that parse lines themselves.

  Such a task may convert its lines, so that this is no error.
  """
  for path in reading.files:
    place, *_ = _scan(path, _state(path), None, reading.header_lines)
    if place and (path, place) not in _said:
      _said.add((path, place))
      print(f"{reading.who}: {path} is not UTF-8 text ({place}); what is not "
            "becomes unknown pieces, unless the task converts it.",
            file=sys.stderr, flush=True)


def check_tsv_dataset() -> None:
  """Checks the file of T5's `tsv_dataset_fn` as those of tasks.

  Can be removed with `check_parsed_lines`.
  """
  from mesh_tensorflow.transformer import dataset
  upstream = dataset.packed_parallel_tsv_dataset

  @functools.wraps(upstream)
  def packed_parallel_tsv_dataset(*args, **kwargs):
    for path in files_of_tsv_dataset():
      reason = text_files.why_unreadable(path)
      if reason:
        raise ValueError(
            f"tsv_dataset_fn: filename must be a text file, with filename="
            f"{path}, which {reason}. Set tsv_dataset_fn.filename.")
      check_lines("tsv_dataset_fn", [path], Fields(2))
    return upstream(*args, **kwargs)

  dataset.packed_parallel_tsv_dataset = packed_parallel_tsv_dataset


def files_of_tsv_dataset() -> list[str]:
  """Returns the local files that gin names to `tsv_dataset_fn`."""
  try:
    files = gin.get_bindings("tsv_dataset_fn").get("filename", [])
  except ValueError:  # t5.models is not imported
    return []
  files = [files] if isinstance(files, str) else files
  return [path for path in files if "://" not in path]
