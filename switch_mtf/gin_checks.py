"""Refuses in gin files what gin itself would accept without a word.

gin binds whatever it is told: a scope that nothing enters, a macro that nothing
reads. Both do nothing, and the run silently differs from what was meant.
"""

from switch_mtf import upstream  # noqa: F401  isort:skip

import os
import re
import sys
from collections.abc import Iterable, Sequence

from switch_mtf import gin_values
from switch_mtf.errors import near
from switch_mtf.gin_files import (
    COMMAND_LINE,
    DEFAULTS,
    MTF_FOLDER,
    T5_FOLDER,
    Binding,
    Macro,
    Reference,
    flat,
    imports,
    provided_files,
    read,
    setting,
    unset_bindings,
    written,
)

# Scopes that T5, mesh_tensorflow and this project enter by name. Any other must
# be that of a reference, as in `@train/schedule()`.
SCOPES = frozenset({"attention", "decoder", "encoder", "student", "teacher"})

# Names that belong to a folder. A file of layouts/ may bind nothing else, and
# files of models/ and runs/ may not bind what belongs to another folder.
LAYOUT = (r"utils\.run\.(mesh_|layout_)|precision\.|"
          r"(utils\.)?(get_variable_dtype|tpu_mesh_shape)\.|"
          r"(utils\.)?tpu_estimator_model_fn\.outer_batch_size")
MODEL = (r"(Switch\w+|\w+Router|init_scale|DenseReluDense|transformer)\.|"
         r"(d_model|d_ff|num_layers|num_heads|d_kv|num_experts)$")
RUN = r"utils\.run\."

# Old module, or name in a module that was divided -> its place now.
MOVED = {
    "switch_mtf.checks": "switch_mtf.errors",
    "switch_mtf.compat": "switch_mtf.upstream",
    "switch_mtf.late_imports": "switch_mtf.upstream.late_imports",
    "switch_mtf.layers.attention": "switch_mtf.kernels.attention",
    "switch_mtf.layers.embedding": "switch_mtf.kernels.embedding",
    "switch_mtf.layers.norm": "switch_mtf.kernels.norm",
    "switch_mtf.matmuls": "switch_mtf.kernels.matmuls",
    "switch_mtf.mesh_errors": "switch_mtf.errors",
    "switch_mtf.training.best": "switch_mtf.training.best_checkpoint",
    "switch_mtf.training.blanks": "switch_mtf.comparison.blanks",
    "switch_mtf.training.compare": "switch_mtf.comparison.compare",
    "switch_mtf.training.distillation": "switch_mtf.distillation.loss",
    "switch_mtf.training.distillation.distill_from":
        "switch_mtf.distillation.teacher.distill_from",
    "switch_mtf.training.distillation_report": "switch_mtf.distillation.report",
    "switch_mtf.training.extension": "switch_mtf.training.model_fn",
    "switch_mtf.training.logit_cache": "switch_mtf.distillation.logit_cache",
    "switch_mtf.training.logit_store": "switch_mtf.distillation.logit_store",
    "switch_mtf.training.loop": "switch_mtf.training.phases",
    "switch_mtf.training.optimizer": "switch_mtf.kernels.adafactor",
    "switch_mtf.training.report": "switch_mtf.comparison.report",
    "switch_mtf.training.side_by_side": "switch_mtf.comparison.side_by_side",
    "switch_mtf.training.student_init": "switch_mtf.distillation.student_init",
    "switch_mtf.training.sums": "switch_mtf.kernels.adafactor",
}


# Parameters that list gin files which run during or after the training.
PHASES = ("train_then.phases", "train_then.evaluate_with")


def check_run(
    paths: Sequence[str], params: Sequence[str], folders: Sequence[str],
    own_modules: bool = False,
) -> list[Binding]:
  """Raises ValueError for a mistake that gin would accept.

  Args:
    paths: values of --gin_file; T5's defaults come before them.
    params: values of --gin_param.
    folders: folders in which gin looks, besides the working directory.
    own_modules: whether --module_import names modules.

  Returns:
    All bindings of the run, in the order in which gin applies them.

  Raises:
    ValueError: naming the first mistake, with the nearest legal name.
  """
  bindings = read([DEFAULTS, *paths], params, folders)
  phases = [path for b in bindings if b.name.endswith(PHASES)
            for path in flat(b.value)]
  later = read(phases, [], folders)
  for statement in imports([*paths, *phases], folders):
    check_module(statement.module, statement.place)
  _check_selectors([*bindings, *later])
  check_scopes(bindings)
  check_folders(bindings)
  check_macros(bindings)
  check_unused_macros([*bindings, *later])
  check_hidden(bindings)
  for name in PHASES:
    check_phases(name, flat(setting(bindings, name, [])[0]), folders)
  own = [m for m in imports([*paths, *phases], folders)
         if not m.module.startswith(("switch_mtf", "mesh_tensorflow", "t5"))]
  gin_values.check(bindings, own_modules=bool(own) or own_modules)
  return bindings


def check_phases(
    name: str, phases: Iterable[str], folders: Sequence[str]) -> None:
  """Raises ValueError if the gin file of a phase is not there.

  Args:
    name: the parameter that lists the phases.
    phases: gin files that run during or after the training.
    folders: folders in which gin looks, besides the working directory.

  Raises:
    ValueError: naming the file, and the nearest that are there.
  """
  for path in phases:
    places = (path, *(os.path.join(folder, path) for folder in folders))
    if (not isinstance(path, Macro) and "://" not in path
        and not any(map(os.path.isfile, places))):
      raise ValueError(
          "train_then: the gin file of a phase must be there, with phase="
          f"{path}{near(path, provided_files(folders), cutoff=0.5)}. Set "
          f"{name}.")


def check_module(name: str, place: str) -> None:
  """Raises ValueError for a module that has moved.

  Args:
    name: full name of the module.
    place: where it is named: file and line, or a flag.

  Raises:
    ValueError: naming the module's new place.
  """
  if name in MOVED:
    raise ValueError(
        "gin: a module must be named by its present place, with "
        f"module={name}, place now={MOVED[name]}. Correct it in {place}.")


def _check_selectors(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a name with a module that has moved."""
  for binding in bindings:
    names = [binding.name.rpartition(".")[0], *(
        value.removesuffix("()").rsplit("/", 1)[-1]
        for value in flat(binding.value) if isinstance(value, Reference))]
    for name in names:
      check_module(name, binding.place)
      check_module(name.rpartition(".")[0], binding.place)


def check_scopes(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a scope that nothing enters.

  Args:
    bindings: bindings in order; those of mesh_tensorflow's and T5's files may
      have any scope.

  Raises:
    ValueError: naming the first such scope, and the nearest legal ones.
  """
  legal = set(SCOPES)
  for binding in bindings:
    for value in flat(binding.value):
      if isinstance(value, Reference):
        legal |= set(value.split("/")[:-1])
  for binding in _ours(bindings):
    for scope in filter(None, binding.scope.split("/")):
      if scope not in legal:
        raise ValueError(
            f"gin: a scope must be one that is entered, with scope={scope}"
            f"{near(scope, legal)}, binding={binding.scope}/{binding.name}. "
            f"Correct it in {binding.place}.")


def check_folders(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a binding in the wrong folder.

  Args:
    bindings: bindings in order; mesh_tensorflow's and T5's files may have any.

  Raises:
    ValueError: naming the first such binding, and its folder.
  """
  for binding in _ours(bindings):
    kind = os.path.basename(os.path.dirname(binding.file))
    right = _right_folder(binding.name, kind)
    if right != kind:
      raise ValueError(
          f"gin: a file of {kind}/ must not bind what belongs to {right}/, "
          f"with binding={binding.name}. Move it from {binding.place} to a "
          f"file of {right}/ or of experiments/.")


def _ours(bindings: Sequence[Binding]) -> list[Binding]:
  """Returns the bindings that are not from files of upstream."""
  return [b for b in bindings
          if not b.file.startswith((MTF_FOLDER, T5_FOLDER))]


def _right_folder(name: str, kind: str) -> str:
  """Returns the folder of a binding; `kind` if it is legal there."""
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
  """Raises ValueError for a required binding or a macro without a value.

  Args:
    bindings: all bindings of a run, in order.

  Raises:
    ValueError: naming all required bindings, or the first macro.
  """
  missing = unset_bindings(bindings)
  if missing:
    names = ", ".join(sorted(b.name for b in missing))
    example = missing[0]
    raise ValueError(
        f"gin: every required value must be set, with unset={names}; required "
        f"by {example.place}. Set it in a file that comes later, or with "
        f"--gin_param=\"{example.name} = ...\".")
  macros = {"/".join(filter(None, (b.scope, b.name)))
            for b in bindings if b.is_macro}
  for binding in bindings:
    for value in flat(binding.value):
      # A macro with a dot is a constant of some module.
      if isinstance(value, Macro) and "." not in value and value not in macros:
        raise ValueError(
            f"gin: a macro must have a value, with macro={value}"
            f"{near(value, macros)}. Correct it in {binding.place}, or set it "
            f"with --gin_param=\"{value} = ...\".")


def check_hidden(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a binding of the user's that scopes hide.

  In a scope, gin prefers a binding of that scope, whatever comes last. The
  operative_config.gin of a run has its bindings in the scopes in which they
  were used, so that a later one without a scope changes nothing.

  Args:
    bindings: bindings of a run, in the order in which gin applies them.

  Raises:
    ValueError: naming the first such binding, what hides it, and what to give.
  """
  macros = {b.name: b.value for b in bindings if b.is_macro}
  for number, binding in enumerate(bindings):
    from_command_line = binding.file == COMMAND_LINE
    if binding.is_macro or binding.is_provided or binding.is_recorded:
      continue
    hiding = {
        other.scope: other for other in bindings[:number]
        if other.scope and f"{other.scope}/".startswith(
            f"{binding.scope}/" if binding.scope else "")
        and other.scope != binding.scope
        and other.short_name == binding.short_name
        and (from_command_line or other.is_recorded)}
    # A scope that is bound later, too, is as the user wants it.
    for other in bindings[number:]:
      if other.short_name == binding.short_name:
        hiding.pop(other.scope, None)
    value = written(binding.value, macros)
    hiding = [other for other in hiding.values()
              if written(other.value, macros) != value]
    if hiding:
      names = ", ".join(f"{b.scope}/{b.name} of {b.place}" for b in hiding)
      scoped = [f"{b.scope}/{binding.name} = {value}" for b in hiding]
      instead = " ".join(f'--gin_param="{text}"' if from_command_line else text
                         for text in scoped)
      raise ValueError(
          "gin: a binding must not be hidden by one with a scope, with binding="
          f"{binding.name} = {value}, hidden by={names}. Give the scope, too, "
          f"in {binding.place}: {instead}")


def check_unused_macros(bindings: Sequence[Binding]) -> None:
  """Raises ValueError for a macro of the user's that nothing uses.

  A macro of a provided file, or of a run's operative_config.gin, may be for
  some models only. One on the command line is meant to change something; so is
  one in a file of the user's that resembles a macro in use. Another one there
  gets a line on stderr.

  Args:
    bindings: bindings of a run, and of the phases that follow it.

  Raises:
    ValueError: naming the first such macro, and the nearest that are used.
  """
  used = {value for binding in bindings for value in flat(binding.value)
          if isinstance(value, Macro)}
  for binding in bindings:
    if (not binding.is_macro or binding.name in used or binding.is_provided
        or binding.is_recorded):
      continue
    nearest = near(binding.name, used)
    if nearest or binding.file == COMMAND_LINE:
      raise ValueError(
          f"gin: a macro must be used, with macro={binding.name}{nearest}. "
          f"Correct it in {binding.place}, or leave it out.")
    print(f"gin: nothing uses the macro {binding.name} of {binding.place}",
          file=sys.stderr)
