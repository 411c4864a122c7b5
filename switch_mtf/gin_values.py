"""Refuses values of the wrong type or out of range, before a run starts.

`RULES` has the parameters that the headers of `gin/runs/` and `gin/models/`
name. What is only known when gin has run, such as the result of a function, is
left to the function that takes it.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from switch_mtf.errors import either, near
from switch_mtf.gin_files import (
  Binding,
  Macro,
  Reference,
  flat,
  setting,
  source,
)

MODES = ("train", "eval", "score_eval", "perplexity_eval", "infer",
         "score_from_dataset", "score_from_strings", "export", "export_score",
         "export_infer")
BATCHES = ("sequences_per_batch", "tokens_per_batch", "sequences_per_replica",
           "tokens_per_replica")
# Dimensions of T5's, mesh_tensorflow's and our layers.
DIMENSIONS = frozenset((
    "batch", "beam", "d_ff", "d_kv", "d_model", "ensemble", "expert_hidden",
    "experts", "expert_x", "expert_y", "group", "heads", "layer", "length",
    "max_length", "memory_length", "outer_batch", "query_heads", "vocab"))


class Rule(NamedTuple):
  """Says what a value must be.

  Attributes:
    what: words that follow "must be".
    is_legal: tells for a value without macros and references.
  """

  what: str
  is_legal: Callable[[Any], bool]


def _number(value: Any, kinds: Any) -> bool:
  return isinstance(value, kinds) and not isinstance(value, bool)


def whole(at_least: int) -> Rule:
  """Returns the rule of a whole number."""
  return Rule(f"a whole number, at least {at_least}",
              lambda v: _number(v, int) and v >= at_least)


def number(at_least: float, below: float = float("inf")) -> Rule:
  """Returns the rule of a finite number."""
  limit = "" if below == float("inf") else f" and below {below}"
  return Rule(f"a number, at least {at_least}{limit}",
              lambda v: _number(v, int | float) and at_least <= v < below)


def or_none(rule: Rule) -> Rule:
  """Returns the rule that None is legal, too."""
  return Rule(f"{rule.what}, or None",
              lambda v: v is None or rule.is_legal(v))


def _is_batch_size(value: Any) -> bool:
  if isinstance(value, list | tuple):
    return (len(value) == 2 and value[0] in BATCHES
            and (isinstance(value[1], Macro) or WHOLE.is_legal(value[1])))
  return WHOLE.is_legal(value)


def _are_lengths(value: Any) -> bool:
  if isinstance(value, dict):
    return "targets" in value and all(
        isinstance(v, Macro) or v is None or WHOLE.is_legal(v)
        for v in value.values())
  return value is None or WHOLE.is_legal(value)


def _are_factors(value: Any) -> bool:
  factors = value if isinstance(value, list | tuple) else [value]
  return value is None or all(
      isinstance(v, Macro | Reference) or number(0).is_legal(v)
      for v in factors)


WHOLE, FRACTION = whole(1), number(0, 1)
FLAG = Rule("True or False", lambda v: isinstance(v, bool))
TEXT = Rule("a text in quotation marks that is not empty",
            lambda v: isinstance(v, str) and bool(v.strip()))
OBJECT = Rule("a reference, @name or @name()", lambda v: False)
SEED = Rule("a whole number", lambda v: _number(v, int))
TEXTS = Rule("a list of texts", lambda v: isinstance(v, list | tuple) and all(
    isinstance(part, str) for part in v))
RULES = {
    "run.mode": Rule(f"one of {', '.join(MODES)}", lambda v: v in MODES),
    "run.train_steps": WHOLE,
    "run.total_run_steps": or_none(WHOLE),
    "run.batch_size": Rule(
        "a number of sequences, or a pair of one of "
        f"{', '.join(BATCHES)} and a whole number, at least 1", _is_batch_size),
    "run.sequence_length": Rule(
        "lengths of at least 1, with that of targets, as in "
        "{'inputs': 512, 'targets': 128}", _are_lengths),
    "run.save_checkpoints_steps": WHOLE,
    "run.keep_checkpoint_max": Rule(
        f"{WHOLE.what}, or None, which keeps all",
        lambda v: v is None or WHOLE.is_legal(v)),
    "run.iterations_per_loop": WHOLE,
    "run.perplexity_eval_steps": WHOLE,
    "run.learning_rate_schedule": Rule(
        "a number, at least 0, a reference, or a list of these", _are_factors),
    "run.optimizer": OBJECT,
    "run.train_model_fn": OBJECT,
    "run.train_dataset_fn": or_none(OBJECT),
    "run.eval_dataset_fn": or_none(OBJECT),
    "run.predict_fn": or_none(OBJECT),
    "run.autostack": FLAG,
    "run.skip_seen_data": FLAG,
    "run.seen_data_init_step": whole(0),
    "run.init_checkpoint": or_none(TEXT),
    "run.dataset_split": TEXT,
    "run.mesh_devices": or_none(TEXTS),
    # Unused, it is "" in the operative_config.gin of every run.
    "run.export_path": Rule("a text", lambda v: isinstance(v, str)),
    "mesh_train_dataset_fn.mixture_or_task_name": TEXT,
    "mesh_train_dataset_fn.seed": or_none(SEED),
    "mesh_eval_dataset_fn.mixture_or_task_name": TEXT,
    "mesh_eval_dataset_fn.num_eval_examples": or_none(Rule(
        "a whole number, at least 1, or -1 for all",
        lambda v: WHOLE.is_legal(v) or v == -1 and _number(v, int))),
    "mesh_eval_dataset_fn.seed": or_none(SEED),
    "mesh_eval_dataset_fn.pack": FLAG,
    "random_seed.value": SEED,
    "progress.record_steps": WHOLE,
    "progress.print_seconds": number(0),
    "linear_warmup.steps_or_fraction": number(0),
    "linear_decay.steps_or_fraction": number(0),
    "tokens_per_microbatch_per_replica": or_none(WHOLE),
    "train_then.phases": TEXTS,
    "make_layer_stack.num_layers": WHOLE,
    "Unitransformer.d_model": WHOLE,
    "DenseReluDense.hidden_size": WHOLE,
    "DenseReluDense.dropout_rate": FRACTION,
    "SelfAttention.num_heads": WHOLE,
    "SelfAttention.key_value_size": WHOLE,
    "SelfAttention.dropout_rate": FRACTION,
    "EncDecAttention.num_heads": WHOLE,
    "EncDecAttention.key_value_size": WHOLE,
    "sublayer_dropout.dropout_rate": FRACTION,
    "Unitransformer.z_loss": number(0),
    "decode.beam_size": WHOLE,
    "decode.temperature": number(0),
    "decode_from_file.input_filename": TEXT,
    "decode_from_file.output_filename": TEXT,
    "decode_from_file.repeats": WHOLE,
    "score_from_strings.inputs_filename": TEXT,
    "score_from_strings.targets_filename": TEXT,
    "save_scores.scores_filename": or_none(TEXT),
}


def check(bindings: Sequence[Binding], own_modules: bool = False) -> None:
  """Raises ValueError for the first illegal value of `RULES`, or of a layout.

  Args:
    bindings: all bindings of a run, in order.
    own_modules: whether modules are imported that are not of this project and
      not of upstream; their layers may have dimensions of their own.

  Raises:
    ValueError: naming the value, its place and what to bind.
  """
  # A name may have more or less of its module in front.
  last = {(b.scope, b.short_name): b for b in bindings}
  for (_, name), binding in last.items():
    rule = RULES.get(name)
    if rule is None:
      continue
    for value, at, whole in _parts(binding, bindings):
      if isinstance(whole, Macro | Reference) or rule.is_legal(whole):
        continue
      nearest = near(str(value), MODES) if name == "run.mode" else ""
      raise ValueError(
          f"gin: {at.name} must be {rule.what}, with {at.name}={value!r}"
          f"{nearest}{_as_used(binding, at)}.{_meant(value, rule, at.name)} "
          f"Correct it in {at.place}.")
  check_layout(bindings, own_modules)
  _check_decoding(bindings)


def _check_decoding(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for beams that are sampled."""
  beams, name = setting(bindings, "decode.beam_size", 1)
  temperature, other = setting(bindings, "decode.temperature", 0)
  if _number(beams, int) and _number(temperature, int | float) and (
      beams > 1 and temperature):
    raise ValueError(
        "gin: beam search must not sample, with "
        f"{name}={beams}, {other}={temperature}. Set {name} = 1, or "
        f"{other} = 0.0.")


def _parts(
    binding: Binding, bindings: Sequence[Binding]
) -> Iterator[tuple[Any, Binding, Any]]:
  """Yields what makes up the value of a binding, to be judged one by one.

  Yields:
    A value, the binding that has it, and the whole value with no macro replaced
    but that of this value.
  """
  whole = source(binding, bindings)
  yield whole.value, whole, whole.value
  for macro in {part for part in flat(whole.value) if isinstance(part, Macro)}:
    part = source(dataclasses.replace(whole, value=macro), bindings)
    if not isinstance(part.value, Macro):
      yield part.value, part, _replace(whole.value, macro, part.value)


def _replace(value: Any, macro: Macro, by: Any) -> Any:
  """Returns a value with one of its macros replaced."""
  if isinstance(value, dict):
    return {k: _replace(v, macro, by) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_replace(v, macro, by) for v in value)
  return by if isinstance(value, Macro) and value == macro else value


def _as_used(binding: Binding, at: Binding) -> str:
  """Returns ', used as X' for the value of a macro."""
  return "" if at is binding else f", used as {binding.name}"


def _meant(value: Any, rule: Rule, name: str) -> str:
  """Returns a sentence with the likely correction, or ''."""
  meant = value
  if isinstance(value, str):
    try:
      meant = int(value) if re.fullmatch(r"-?\d+", value) else float(value)
    except ValueError:
      return ""
  if isinstance(meant, float) and meant.is_integer():
    meant = int(meant)
  if type(meant) is not type(value) and rule.is_legal(meant):
    return f" Likely correction: {name} = {meant}."
  return ""


def _check_number_of_devices(
    bindings: Sequence[Binding], mesh: str, size: int) -> None:
  """Raises ValueError unless a user's mesh has a device for each processor."""
  devices, name = setting(bindings, "run.mesh_devices")
  binding = next((b for b in reversed(bindings) if b.name == name), None)
  if (binding is None or binding.is_provided
      or not isinstance(devices, list | tuple) or len(devices) == size):
    return
  raise ValueError(
      "gin: a mesh must have a device for each processor, with "
      f"mesh_shape={mesh!r}, processors={size}, {name}={devices!r}. Set {name} "
      f"to a list of {size}; a device may be named several times.")


def check_layout(bindings: Sequence[Binding], own_modules: bool) -> None:
  """Raises ValueError for a mesh that cannot be read, or a rule in vain.

  A rule for a dimension or an axis that is not there does nothing. Rules of
  upstream's and of this project's files may have some, because they are for
  many models and meshes, and so may the operative_config.gin of a run, which
  has upstream's defaults.

  Args:
    bindings: all bindings of a run, in order.
    own_modules: see `check`.

  Raises:
    ValueError: naming the mesh or the rule, and the nearest names.
  """
  mesh, mesh_name = setting(bindings, "run.mesh_shape", "")
  axes = None
  if isinstance(mesh, str) and not isinstance(mesh, Macro | Reference):
    parts = [part.split(":") for part in re.split("[,;]", mesh) if part]
    if not all(len(part) == 2 and re.fullmatch(r"\s*[1-9]\d*\s*", part[1])
               for part in parts):
      raise ValueError(
          "gin: a mesh must be axes with sizes, as in 'batch:4,model:2', with "
          f"{mesh_name}={mesh!r}. Correct {mesh_name}.")
    axes = [part[0].strip() for part in parts]
    _check_number_of_devices(
        bindings, mesh, math.prod(int(part[1]) for part in parts))
  rules, name = setting(bindings, "run.layout_rules", "")
  binding = next((b for b in reversed(bindings) if b.name == name), None)
  if (not isinstance(rules, str) or isinstance(rules, Macro | Reference)
      or binding is None or binding.is_provided or binding.is_recorded):
    return
  for rule in filter(None, re.split("[,;]", rules)):
    dim, colon, axis = (part.strip() for part in rule.partition(":"))
    if not colon or not axis or not dim:
      raise ValueError(
          "gin: a layout must be rules dimension:axis, as in "
          f"'batch:batch,d_ff:model', with rule={rule!r}. Correct {name} in "
          f"{binding.place}.")
    if axes is not None and axis not in axes:
      raise ValueError(
          f"gin: the axis of a layout rule must be one of the mesh, with "
          f"rule={rule}, {mesh_name}={mesh!r}{near(axis, axes)}. Correct "
          f"{name} in {binding.place}, or take the rule out.")
    if dim not in DIMENSIONS and (near(dim, DIMENSIONS) or not own_modules):
      raise ValueError(
          "gin: the dimension of a layout rule must be one of a layer, with "
          f"rule={rule}{near(dim, DIMENSIONS)}, known="
          f"{either(sorted(DIMENSIONS))}. Correct {name} in {binding.place}, "
          "or take the rule out.")
