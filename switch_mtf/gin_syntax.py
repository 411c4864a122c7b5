"""Says what is wrong with a line that gin cannot read, and what was meant.

gin's parser raises SyntaxError or TokenError, without the name of the file.
"""

import re
import tokenize

PAIRS = {"(": ")", "[": "]", "{": "}"}
# A string or a comment, in which brackets do not count.
INERT = re.compile(
    r"'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*",
    re.DOTALL)
WORDS = {"true": "True", "false": "False", "none": "None", "null": "None",
         "nil": "None"}


def explain(
    error: SyntaxError | tokenize.TokenError, text: str, file: str
) -> ValueError:
  """Returns a better error for one of gin's parser.

  Args:
    error: the error of the parser.
    text: what was parsed.
    file: where it is from: a path, or the name of a flag.
  """
  open_bracket = unclosed(text)
  lines = text.splitlines()
  if open_bracket:
    number, bracket = open_bracket
    what = f"every {bracket} must be closed"
    meant = f"a {PAIRS[bracket]} is missing"
  else:
    number = getattr(error, "lineno", None) or len(lines)
    what = ("a line must be a comment, an import, an include or NAME = VALUE, "
            "where a text has quotation marks")
    meant = correction(lines[number - 1] if number <= len(lines) else "")
  read = lines[number - 1].strip() if number <= len(lines) else ""
  likely = f" Likely correction: {meant}." if meant else ""
  flag = file.startswith("--")
  place = f"flag={file}" if flag else f"file={file}, line={number}"
  return ValueError(
      f"gin: {what}, with {place}, read={read!r}.{likely} Correct "
      f"{file if flag else f'line {number} of {file}'}.")


def unclosed(text: str) -> tuple[int, str] | None:
  """Returns line and bracket of the first that is not closed, or None."""
  text = INERT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
  stack = []
  for number, line in enumerate(text.splitlines(), start=1):
    for sign in line:
      if sign in PAIRS:
        stack.append((number, sign))
      elif stack and sign == PAIRS[stack[-1][1]]:
        stack.pop()
  return stack[0] if stack else None


def correction(line: str) -> str | None:
  """Returns how a line was probably meant, or None."""
  line = line.strip()
  if line.startswith("\ufeff"):  # a byte order mark
    return line[1:]
  straight = re.sub("[\u2018\u2019]", "'", re.sub("[\u201c\u201d]", '"', line))
  if straight != line:
    return straight
  if line.startswith("--gin_param"):
    return line.removeprefix("--gin_param").lstrip("= ").strip("\"'")
  included = re.fullmatch(r"include\s+([^'\"\s]+)", line)
  if included:
    return f"include '{included[1]}'"
  if line.endswith(";"):
    return line.rstrip("; ")
  apart = re.fullmatch(
      r"(?!import|include)([\w./]+)\s*(?:==|:=|:|\s)\s*(\S.*)", line)
  if apart and "=" not in apart[2]:
    return f"{apart[1]} = {_value(apart[2])}"
  name, equals, value = (part.strip() for part in line.partition("="))
  if not equals:
    return None
  if not value:
    return f"{name} = <a value>"
  return f"{name} = {_value(value)}" if _value(value) != value else None


def _value(text: str) -> str:
  """Returns a value as gin would have it."""
  if text.lower() in WORDS:
    return WORDS[text.lower()]
  if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text):
    return text.replace(",", "")
  if re.fullmatch(r"[+-]?\d+,\d+", text):
    return text.replace(",", ".")
  if re.fullmatch(r"['\"][^'\"]*", text):  # not closed
    return text + text[0]
  if re.fullmatch(r"[^\W\d][\w./:-]*|[/~.][\w./-]+", text):
    return f'"{text}"'
  return text
