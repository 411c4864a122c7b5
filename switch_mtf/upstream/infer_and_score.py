"""Patches for texts that are decoded or scored.

A text becomes the same ids in every mode: those of evaluation, which cuts a
long text to one id less than the length and ends it with the end of sequence.
A line of a file is one line of results. What is cut is said before work starts;
what cannot be scored whole is refused.
"""

import contextlib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gin
import numpy as np

from switch_mtf.upstream import text_files, vocabulary_ids
from switch_mtf.upstream.text_files import Lines

MOST_COUNTED = 1_000  # lines of which unknown pieces are counted
SCORED = (".scores", ".targets", ".lengths")


@gin.configurable(module="switch_mtf.upstream.infer_and_score")
def targets_per_input(value: int = 1) -> int:
  """Returns how many targets in a row are scored with each line of inputs.

  Args:
    value: the number, at least 1. The targets of a file that was decoded with
      `decode_from_file.repeats = 3` are three for each input.

  Raises:
    ValueError: if the number is not a whole number, at least 1.
  """
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(
        "targets_per_input: value must be a whole number, at least 1, with "
        f"value={value!r}. Set targets_per_input.value.")
  return value


def apply() -> None:
  """Applies the patches of this file."""
  read_every_line()
  encode_as_evaluation_does()
  write_one_line_each()
  check_before_decoding()
  check_before_scoring()


def read_every_line() -> None:
  """Reads files as `text_files.read_lines` does.

  Upstream drops the last line if it is empty, so that later results stand
  beside the wrong lines, and ends in a traceback if a file is not UTF-8, empty
  or missing. Can be removed when `get_inputs_from_file` keeps every line, and
  says what is wrong with a file.
  """
  from mesh_tensorflow.transformer import utils

  def get_inputs_from_file(input_filename, ignore_comments=False):
    lines = text_files.read_lines(
        "infer", "input_filename", input_filename, "inputs")
    if ignore_comments:
      lines[:] = [line for line in lines if not line.startswith("#")]
    return lines

  utils.get_inputs_from_file = get_inputs_from_file


def encode_as_evaluation_does() -> None:
  """Encodes lines with the ids that evaluation feeds, and says what it cuts.

  Upstream cuts the end of sequence off a long text, encodes targets with the
  vocabulary of the inputs, never scores the end of a language model's text, and
  cuts in silence. Can be removed when `encode_inputs` cuts as
  `seqio.preprocessors.append_eos_after_trim` does, and is told which feature
  it encodes.
  """
  from mesh_tensorflow.transformer import utils

  def encode_inputs(inputs, vocabulary, model_type, batch_size, sequence_length,
                    eos_id=1, unscored_prefix=None):
    feature = getattr(inputs, "feature", "inputs")
    used = (utils.targets_vocabulary if feature == "targets"
            else utils.inputs_vocabulary)(vocabulary)
    end = [eos_id] if eos_id and has_end(feature, model_type) else []
    rows = [list(used.encode(line.rstrip("\r\n"))) for line in inputs]
    _say_what_is_unknown(inputs, feature, used, rows)
    if unscored_prefix:
      before = utils.inputs_vocabulary(vocabulary).encode
      rows = [[-i for i in before(prefix.rstrip("\r\n"))] + row
              for prefix, row in zip(unscored_prefix, rows, strict=True)]
    long = {number: len(row) + len(end) for number, row in enumerate(rows, 1)
            if len(row) + len(end) > sequence_length}
    if long and feature == "targets":
      _refuse(inputs, long, sequence_length, bool(unscored_prefix))
    elif long:
      _say(inputs, long, sequence_length)
    return _in_batches(rows, end, sequence_length, batch_size)

  utils.encode_inputs = encode_inputs


def has_end(feature: str, model_type: str) -> bool:
  """Returns whether evaluation ends a feature with the end of sequence.

  Args:
    feature: "inputs" or "targets". The inputs of a language model are its
      targets' start, which is to be continued, and have no end.
    model_type: `utils.run.model_type`.
  """
  import seqio
  if model_type == "lm" and feature == "inputs":
    return False
  try:
    task = seqio.get_mixture_or_task(gin.query_parameter("%MIXTURE_NAME"))
  except ValueError:  # the run has no task, or an unknown one
    return True
  known = task.output_features.get(feature)
  return known is None or known.add_eos


def _in_batches(
    rows: list[list[int]], end: list[int], length: int, batch_size: int
) -> np.ndarray:
  """Returns ids int32 [rows, length]: cut, ended, padded to whole batches."""
  rows = [row[:length - len(end)] + end for row in rows]
  rows += [rows[0]] * (-len(rows) % batch_size)
  ids = np.zeros([len(rows), length], np.int32)
  for number, row in enumerate(rows):
    ids[number, :len(row)] = row
  return ids


def _longer(feature: str, length: int, longest: int) -> str:
  """Returns the binding with which the longest line is whole."""
  lengths = {feature: length} | (_lengths[-1] if _lengths else {})
  return text_files.longer(lengths, {feature: longest})


def _say(lines: list[str], long: dict[int, int], length: int) -> None:
  """Prints how many lines are cut, and what keeps them whole."""
  longest = max(long.values())
  notice = text_files.cut_notice(len(long), len(lines), "lines", length)
  print(f"{getattr(lines, 'path', None) or 'inputs'}: {notice}: set "
        f"{_longer('inputs', length, longest)} to keep them whole (the longest "
        f"has {longest:,}).", file=sys.stderr, flush=True)


def _say_what_is_unknown(
    lines: list[str], feature: str, vocabulary: Any, rows: list[list[int]]
) -> None:
  """Prints how many pieces are unknown to the vocabulary, if they are many."""
  unknown = vocabulary_ids.Unknown()
  for row in rows[:MOST_COUNTED]:
    unknown.count(feature, vocabulary, row)
  for line in unknown.lines():
    print(f"{getattr(lines, 'path', None) or feature}: {line}.",
          file=sys.stderr, flush=True)


def _refuse(
    lines: Lines, long: dict[int, int], length: int, continued: bool
) -> None:
  """Raises the ValueError for targets that cannot be scored whole."""
  longest = max(long.values())
  where = f"{lines.option}={lines.path}, " if lines.path else ""
  many = "lines" if len(long) > 1 else "line"
  what = "every target, with the inputs it continues," if continued else (
      "every target")
  raise ValueError(
      f"score: {what} must fit into the length, or another text would be "
      f"scored, with {where}{text_files.numbered(list(long))}, "
      f"tokens={', '.join(map(str, list(long.values())[:5]))}, length={length}."
      f" Set {_longer('targets', length, longest)}, or shorten the {many}.")


_lengths: list[dict[str, int]] = []  # the lengths of the run, while it encodes


@contextlib.contextmanager
def _with_lengths(lengths: dict[str, int] | int) -> Iterator[None]:
  """Makes the lengths of a run known to the messages above."""
  _lengths.append(lengths if isinstance(lengths, dict) else {
      "inputs": lengths, "targets": lengths})
  try:
    yield
  finally:
    _lengths.pop()


def write_one_line_each() -> None:
  """Writes each result to one line, and says where.

  Upstream replaces line feeds, but not carriage returns, which end a line for
  most readers, and writes bytes as "b'...'". Can be removed when
  `write_lines_to_file` does otherwise.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.write_lines_to_file

  @functools.wraps(upstream)
  def write_lines_to_file(lines, filename, say=True):
    lines = [_on_one_line(line) for line in lines]
    upstream(lines, filename)
    if say:
      many = "line" if len(lines) == 1 else "lines"
      print(f"wrote {len(lines):,} {many} to {filename}", flush=True)

  utils.write_lines_to_file = write_lines_to_file


def _on_one_line(line: Any) -> str:
  """Returns a result as text without line ends."""
  if isinstance(line, bytes):
    line = line.decode("utf-8", "replace")
  return str(line).replace("\r\n", " ").replace("\r", " ").replace("\n", " ")


def check_before_decoding() -> None:
  """Checks where decoding writes before it starts.

  Upstream opens the file of results when all lines are decoded. Can be removed
  when `decode_from_file` opens it first.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.infer_model

  @functools.wraps(upstream)
  def infer_model(*args, **kwargs):
    call = arguments(upstream, args, kwargs)
    if (inspect.unwrap(call["decode_fn"])
        is inspect.unwrap(utils.decode_from_file)):
      _check_output(call["model_dir"], **gin.get_bindings("decode_from_file"))
    with _with_lengths(call["sequence_length"]):
      return upstream(*args, **kwargs)

  utils.infer_model = infer_model


def _check_output(
    model_dir: str, input_filename: Any = None, output_filename: Any = None,
    repeats: Any = 1, **unused_bindings: Any
) -> None:
  """Raises ValueError unless `decode_from_file` can write its results."""
  from mesh_tensorflow.transformer import utils
  if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
    raise ValueError(
        "decode_from_file: repeats must be a whole number, at least 1, with "
        f"repeats={repeats!r}. Set decode_from_file.repeats to the number of "
        "results for each line.")
  if gin.REQUIRED in (input_filename, output_filename) or None in (
      input_filename, output_filename):
    return  # gin names what is missing
  lines = utils.get_inputs_from_file(input_filename)
  _check_name("infer", "output_filename", output_filename)
  # The step of the checkpoint is appended to the name.
  step = re.fullmatch(re.escape(os.path.realpath(output_filename)) + r"-(\d+)",
                      os.path.realpath(input_filename))
  used = step and os.path.exists(
      os.path.join(model_dir, f"model.ckpt-{step[1]}.index"))
  text_files.check_outputs(
      "infer", "output_filename",
      [f"{output_filename}-{step[1] if used else 0}"], [lines])


def _check_name(who: str, option: str, name: Any) -> None:
  """Raises ValueError unless results can be called by a name."""
  if not isinstance(name, str) or not os.path.basename(name):
    raise ValueError(
        f"{who}: {option} must be the name of a file, with {option}={name!r}. "
        f"Set {option} to a name; what it is for is appended.")


def arguments(function: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
  """Returns all arguments of a call of a configurable, gin's too."""
  signature = inspect.signature(function)
  given = signature.bind_partial(*args, **kwargs).arguments
  defaults = {p.name: p.default for p in signature.parameters.values()
              if p.default is not p.empty}
  return defaults | gin.get_bindings(
      function.__name__) | given


def check_before_scoring() -> None:
  """Reads, pairs and checks the lines to score before work starts.

  Upstream compares only the numbers of lines, and takes four targets of two
  inputs for two targets each, whatever the user meant. Can be removed when
  `score_from_strings` reads and pairs lines so.
  """
  from mesh_tensorflow.transformer import utils
  upstream = utils.score_from_strings

  @functools.wraps(upstream)
  def score_from_strings(*args, **kwargs):
    call = arguments(upstream, args, kwargs)
    if gin.REQUIRED in (call["inputs"], call["targets"]):
      return upstream(*args, **kwargs)  # gin names what is missing
    inputs, targets = paired(_lines(call, "inputs"), _lines(call, "targets"),
                             call["model_type"])
    text_files.check_outputs(
        "score", "scores_filename",
        _score_files(call["score_postprocess_fn"]),
        [lines for lines in (inputs, targets) if lines is not None])
    given = inspect.signature(upstream).bind_partial(*args, **kwargs).arguments
    with _with_lengths(call["sequence_length"]):
      return upstream(**given | {"inputs": inputs, "targets": targets})

  utils.score_from_strings = score_from_strings


def _lines(call: dict[str, Any], feature: str) -> Lines | None:
  """Returns the lines that an argument gives: a path, a list, or None."""
  value = call[feature]
  if value is None:
    return None
  if isinstance(value, str):
    return text_files.read_lines("score", f"{feature}_filename", value, feature)
  return Lines(value, feature)


def paired(inputs: Lines | None, targets: Lines | None, model_type: str
           ) -> tuple[Lines | None, Lines]:
  """Returns as many inputs as targets: one for each.

  Args:
    inputs: lines of inputs; None for a language model without a given start.
    targets: lines of targets.
    model_type: `utils.run.model_type`.

  Raises:
    ValueError: if there are no targets, no inputs for a model that needs them,
      or the numbers do not match.
  """
  if not targets:
    raise ValueError(
        "score: there must be lines to score, with targets=0. Set "
        "targets_filename to a file of text.")
  if inputs is None and model_type == "lm":
    return None, targets
  if not inputs:
    raise ValueError(
        "score: there must be inputs for a model with an encoder, with "
        f"inputs=0, {targets.described()}, model_type={model_type}. Set "
        "inputs_filename to a file with a line for each target.")
  each = targets_per_input()
  if len(inputs) * each != len(targets):
    raise ValueError(_unpaired(inputs, targets, each))
  path, option = inputs.path, inputs.option
  return Lines([line for line in inputs for _ in range(each)], "inputs", path,
               option), targets


def _unpaired(inputs: Lines, targets: Lines, each: int) -> str:
  """Returns the error for numbers of lines that do not match."""
  times, rest = divmod(len(targets), len(inputs))
  candidates = "" if rest or times in (each, 0) else (
      f", or, if each input has {times} targets in a row, set "
      f"targets_per_input.value = {times}")
  wanted = "a line of targets" if each == 1 else f"{each} lines of targets"
  return (
      f"score: each line of inputs must have {wanted}, with "
      f"{inputs.described()}, {targets.described()}, "
      f"targets_per_input.value={each}. Correct the files{candidates}. An empty"
      " line counts.")


def _score_files(postprocess: Any) -> list[str]:
  """Returns the files that scoring writes."""
  from mesh_tensorflow.transformer import utils
  known = getattr(postprocess, "keywords", {})
  function = getattr(postprocess, "func", postprocess)
  if inspect.unwrap(function) is not inspect.unwrap(utils.save_scores):
    return []
  bound = gin.get_bindings("save_scores") | known
  name = bound.get("scores_filename")
  if name is None:
    return []
  _check_name("score", "scores_filename", name)
  suffixes = SCORED if bound.get("save_example_text", True) else SCORED[:1]
  return [name + suffix for suffix in suffixes]
