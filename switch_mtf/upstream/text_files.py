"""Lines of a user's file: read, counted, and refused with file, line and byte.

Both `infer_and_score` and the tasks read files here, so that a file means the
same lines, and a wrong file gives the same error, wherever it is used. A line
ends with a line feed; a carriage return is no part of a line, and neither is
the mark EF BB BF at the start of a file. Other signs that Unicode calls line
ends, and zero bytes, are text.

Changes nothing of upstream, but stands here because everything may import from
here, and upstream's seams call it.
"""

import difflib
import os
from collections.abc import Iterable

import tensorflow.compat.v1 as tf

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Lines(list):
  """The lines of a text.

  Attributes:
    feature: "inputs" or "targets", what the model takes the lines for.
    path: path of the file; None if the lines are not of a file.
    option: name of the binding that names the file.
  """

  def __init__(
      self, lines: Iterable[str], feature: str = "inputs",
      path: str | None = None, option: str = ""):
    super().__init__(lines)
    self.feature = feature
    self.path = path
    self.option = option

  def described(self) -> str:
    """Returns 'inputs=3', with the file where there is one."""
    where = f" ({self.path})" if self.path else ""
    return f"{self.feature}={len(self)}{where}"


def read_lines(who: str, option: str, path: str, feature: str) -> Lines:
  """Reads the lines of a text file, empty ones too.

  Args:
    who: the command, for errors.
    option: name of the binding that names the file.
    path: path of the file.
    feature: "inputs" or "targets".

  Raises:
    ValueError: if the file cannot be read, is not UTF-8, holds nothing, or has
      no line ends but those of old Macintosh files.
  """
  raw = read_bytes(who, option, path)
  text = decoded(who, option, path, raw)
  if not text:
    raise ValueError(
        f"{who}: the file must hold at least one line, with {option}={path}, "
        f"bytes={len(raw)}. Set {option} to another file.")
  if "\n" not in text and "\r" in text.rstrip("\r"):
    raise ValueError(
        f"{who}: lines must end with a line feed, with {option}={path}, "
        f"carriage returns={text.count(chr(13))}, line feeds=0. Convert the "
        f"file, for example with: tr '\\r' '\\n' < {path} > new.txt, and set "
        f"{option} to it.")
  lines = text.replace("\r", "").split("\n")
  if not lines[-1]:  # the last line ends with a line feed, too
    lines.pop()
  return Lines(lines, feature, path, option)


def read_bytes(who: str, option: str, path: str) -> bytes:
  """Returns the content of a file; raises ValueError if it cannot be read."""
  reason = why_unreadable(path) if isinstance(path, str) else "is no path"
  if reason is None:
    try:
      with tf.io.gfile.GFile(path, "rb") as f:
        return f.read()
    except tf.errors.OpError as error:
      reason = f"cannot be read: {error.message}"
  raise ValueError(
      f"{who}: {option} must be a text file, with {option}={path}, which "
      f"{reason}. Set {option} to a file of text.")


def why_unreadable(path: str) -> str | None:
  """Returns why a path is no file, or None."""
  try:
    if tf.io.gfile.isdir(path):
      return "is a folder"
    if not tf.io.gfile.exists(path):
      return f"does not exist{_nearest(path)}"
  except tf.errors.OpError as error:
    return f"cannot be read: {error.message}"
  return None


def _nearest(path: str) -> str:
  """Returns ', nearest: a.txt', from the folder of a missing file."""
  folder, name = os.path.split(path)
  if not os.path.isdir(folder or "."):
    return "" if "://" in path else ", and neither does its folder"
  found = difflib.get_close_matches(name, os.listdir(folder or "."), n=3)
  return f", nearest: {', '.join(found)}" if found else ""


def decoded(who: str, option: str, path: str, raw: bytes) -> str:
  """Returns the text of a file, without a byte order mark.

  Args:
    who: the command, for the error.
    option: name of the binding that names the file.
    path: path of the file.
    raw: the content.

  Raises:
    ValueError: if the content is not UTF-8; names the line and the byte.
  """
  try:
    return raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
  except UnicodeDecodeError:
    raise no_text(who, option, path, not_utf8(raw), raw[:2]) from None


def no_text(
    who: str, option: str, path: str, place: str, first: bytes
) -> ValueError:
  """Returns the error for a file that is not UTF-8.

  Args:
    who: the command, or the task.
    option: name of the binding that names the file; "file" if none does.
    path: path of the file.
    place: what `not_utf8` returned.
    first: the first two bytes of the file.
  """
  encoding = "utf-16" if first in _UTF_16 else "latin1"
  name = ("name new.txt instead" if option == "file"
          else f"set {option} = 'new.txt'")
  return ValueError(
      f"{who}: the file must be UTF-8 text, with {option}={path}, {place}. If "
      "it is text in another encoding, convert it, for example with: iconv -f "
      f"{encoding} -t utf-8 {path} > new.txt, and {name}.")


def not_utf8(raw: bytes) -> str:
  """Returns 'line=3, byte=17 (0xe9)', the first that is not UTF-8, or ''.

  The byte is counted in its line, from 1.
  """
  try:
    raw.decode("utf-8")
    return ""
  except UnicodeDecodeError as error:
    start = error.start
  line = raw.count(b"\n", 0, start) + 1
  byte = start - raw.rfind(b"\n", 0, start)
  return f"line={line}, byte={byte} (0x{raw[start]:02x})"


def check_outputs(
    who: str, option: str, written: Iterable[str], read: Iterable[Lines]
) -> None:
  """Raises ValueError unless results can be written, and over no file read.

  Args:
    who: the command, for errors.
    option: name of the binding behind the files of results.
    written: path of each file of results.
    read: the files that the command reads.
  """
  sources = {os.path.realpath(lines.path): lines for lines in read
             if lines.path}
  for path in written:
    lines = sources.get(os.path.realpath(path))
    if lines is not None:
      raise ValueError(
          f"{who}: results must not replace the file that is read, with "
          f"{lines.option}={lines.path}, results={path}. Set {option} to "
          "another name.")
    reason = _why_unwritable(path)
    if reason:
      raise ValueError(
          f"{who}: {option} must name files that can be written, with "
          f"file={path}: {reason}. Set {option} to another name.")


def _why_unwritable(path: str) -> str | None:
  """Returns why a file cannot be written, or None; creates nothing."""
  if "://" in path:
    return None
  if os.path.isdir(path):
    return "it is a folder"
  if os.path.exists(path):
    return None if os.access(path, os.W_OK) else "permission denied"
  folder = os.path.dirname(os.path.abspath(path))
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder):
    return f"{folder} is not a folder"
  return None if os.access(folder, os.W_OK) else (
      f"permission denied in {folder}")


def numbered(numbers: list[int], most: int = 5) -> str:
  """Returns 'line=4' or 'lines=4, 7 and 3 more'."""
  if len(numbers) == 1:
    return f"line={numbers[0]}"
  rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
  return f"lines={', '.join(map(str, numbers[:most]))}{rest}"


def cut_notice(cut: int, total: int, what: str, length: int) -> str:
  """Returns '3 of 40 lines cut at 24 tokens'."""
  return f"{cut:,} of {total:,} {what} cut at {length:,} tokens"


def longer(lengths: dict[str, int], needed: dict[str, int]) -> str:
  """Returns 'utils.run.sequence_length = {...}' with room for longer texts.

  A length that is too small becomes a multiple of itself, so that all that
  divides it (groups of tokens, batches given in tokens) still does.

  Args:
    lengths: length in use of each feature.
    needed: length of the longest text of each feature that is cut.
  """
  room = {name: -(-needed.get(name, length) // length) * length
          for name, length in sorted(lengths.items())}
  return f"utils.run.sequence_length = {room}"
