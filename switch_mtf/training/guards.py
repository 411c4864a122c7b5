"""Refuses a run that cannot work, before it costs time, in words that help."""

import difflib
import inspect
import os
import re
import shutil
import tempfile

import gin
import seqio
import tensorflow.compat.v1 as tf

from switch_mtf import mesh_errors
from switch_mtf.gin_files import near

MAX_NAMES = 8


def check_gin_files(paths: list[str], search_paths: list[str]) -> None:
  """Raises ValueError if a gin file is missing or unreadable.

  Args:
    paths: as given by --gin_file.
    search_paths: folders in which gin looks, besides the working directory.
  """
  for path in paths:
    places = [path, *(os.path.join(folder, path) for folder in search_paths)]
    found = next((p for p in places if tf.io.gfile.exists(p)), None)
    if found is None:
      raise ValueError(
          f"run_t5: --gin_file must be an existing file, with gin_file={path}"
          f"{_nearest_file(path, search_paths)}. Correct --gin_file.")
    try:
      with tf.io.gfile.GFile(found) as f:
        f.read()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
      reason = ("it is not UTF-8 text" if isinstance(error, UnicodeDecodeError)
                else error.message)
      raise ValueError(
          f"run_t5: --gin_file must be readable, with gin_file={found}: "
          f"{reason}. Correct --gin_file or the file's permissions.") from error


def _nearest_file(path: str, search_paths: list[str]) -> str:
  """', nearest: a.gin, b.gin' among the gin files of the search paths."""
  known = []
  for folder in search_paths:
    for root, _, names in os.walk(folder):
      known += [os.path.relpath(os.path.join(root, name), folder)
                for name in names if name.endswith(".gin")]
  found = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
  return f", nearest: {', '.join(found)}" if found else ""


def readable(error: Exception) -> str | None:
  """What to tell the user of an error, or None if it needs its traceback."""
  better = (explain_gin_error(error) or explain_task_error(error)
            or explain_batch_error(error) or mesh_errors.explain_axis(error)
            or explain_error_of_a_step(error) or error)
  text = str(better).split("\n  In call to configurable")[0]
  return text if re.match(r"[\w. ]+: .* must ", text, re.DOTALL) else None


def explain_error_of_a_step(error: Exception) -> ValueError | None:
  """The error of Python code that ran inside a graph, or None."""
  raised = re.search(r"ValueError: (\w+: .*?)\s*\nTraceback ", str(error),
                     re.DOTALL)
  return raised and ValueError(raised[1])


def explain_task_error(error: Exception) -> ValueError | None:
  """A better error for the name of a task that does not exist, or None."""
  unknown = re.search(r"No Task or Mixture found with name '([^']+)'",
                      str(error))
  if not unknown:
    return None
  name = unknown.group(1)
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  return ValueError(
      "seqio: the task or mixture must be registered, with "
      f"mixture_or_task_name={name}{near(name, known)}. Correct MIXTURE_NAME, "
      "or import the module that registers it with --module_import.")


def explain_batch_error(error: Exception) -> ValueError | None:
  """A better error for a batch that T5 cannot cut into sequences, or None."""
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
  """A better error for a binding that names nothing, or None."""
  text = str(error)
  unknown = re.search(
      r"No configurable matching (?:reference )?'@?([\w./]+)(?:\(\))?'", text)
  if unknown:
    name = unknown.group(1)
    return ValueError(
        f"gin: a binding must name a configurable, with name={name}"
        f"{near(name, _configurables())}. Correct the binding, or import its "
        f"module with --module_import. {_where(text)}")
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
  """Names of all gin configurables, short and with their module."""
  registry = gin.config._REGISTRY  # gin offers no public list
  full = [selector for selector, _ in registry.items()]
  return [*full, *{name.rsplit(".", 1)[-1] for name in full}]


def _parameters(name: str) -> list[str]:
  """Names of the parameters of a configurable."""
  wrapped = gin.config._REGISTRY.get_match(name).wrapped
  return list(inspect.signature(wrapped).parameters)


def _where(text: str) -> str:
  """The line 'In file ... line 3' that gin appends, if there is one."""
  place = re.search(r"In (file|bindings string).*", text, re.DOTALL)
  return " ".join(place.group(0).split()) if place else ""


def check_model_dir(model_dir: str) -> None:
  """Raises ValueError unless files can be made in `model_dir`.

  A directory that did not exist is left behind only if that works.
  """
  if "://" in model_dir:
    return
  existed = os.path.isdir(model_dir)
  try:
    os.makedirs(model_dir, exist_ok=True)
    with tempfile.TemporaryFile(dir=model_dir) as f:
      f.write(b"0" * 65536)
  except OSError as error:
    if not existed and os.path.isdir(model_dir):
      os.rmdir(model_dir)
    raise ValueError(
        "run_t5: --model_dir must be a folder that can be written, with "
        f"model_dir={model_dir}: {error.strerror}. Choose another "
        "--model_dir, or make room there.") from error


def check_room(
    model_dir: str, variables: list[tf.Variable], keep: int | None
) -> None:
  """Raises ValueError unless the checkpoints that are kept will fit.

  Args:
    model_dir: where they go.
    variables: what a checkpoint holds.
    keep: checkpoints kept; None keeps all, of which two are demanded here.
  """
  if "://" in model_dir:
    return
  size = sum(
      v.shape.num_elements() * v.dtype.base_dtype.size for v in variables)
  already = 0 if keep is None else sum(
      os.path.getsize(os.path.join(model_dir, name))
      for name in os.listdir(model_dir) if name.startswith("model.ckpt"))
  # One more than is kept exists while the oldest is about to go.
  need = size * ((keep or 1) + 1) - already
  free = shutil.disk_usage(model_dir).free
  if need > free:
    raise ValueError(
        "run_t5: the disk of --model_dir must have room for the checkpoints, "
        f"with model_dir={model_dir}, one checkpoint={size / 1e9:.2f} GB, "
        f"keep_checkpoint_max={keep}, needed={need / 1e9:.2f} GB, "
        f"free={free / 1e9:.2f} GB. Make room, choose another --model_dir, or "
        "lower utils.run.keep_checkpoint_max.")


def check_checkpoint(model_dir: str, variables: list[tf.Variable]) -> None:
  """Raises ValueError if `model_dir` holds another model's checkpoint.

  Args:
    model_dir: of the run.
    variables: of the model's graph.
  """
  checkpoint = tf.train.latest_checkpoint(model_dir)
  if checkpoint is None:
    return
  stored = dict(tf.train.list_variables(checkpoint))
  wanted = {v.op.name: v.shape.as_list() for v in variables}

  def weights_first(name: str) -> tuple[bool, str]:
    return "_slot_" in name, name

  missing = sorted(set(wanted) - set(stored), key=weights_first)
  wrong = [f"{name} is {stored[name]} there and {wanted[name]} here"
           for name in sorted(wanted, key=weights_first)
           if name in stored and list(stored[name]) != wanted[name]]
  if not missing and not wrong:
    return
  extra = sorted(name for name in set(stored) - set(wanted)
                 if "_slot_" not in name)
  raise ValueError(
      "run_t5: the checkpoint in --model_dir must be of this model, with "
      f"checkpoint={checkpoint}{_list('different shapes', wrong)}"
      f"{_list('missing there', missing)}{_list('only there', extra)}. "
      f"{_likely_cause(missing, extra, wrong)} Give this model another "
      "--model_dir, or the gin files that wrote "
      f"{os.path.join(model_dir, 'operative_config.gin')}.")


def _list(what: str, names: list[str]) -> str:
  """'; what (12): a, b, ...'."""
  if not names:
    return ""
  more = ", ..." if len(names) > MAX_NAMES else ""
  return f"; {what} ({len(names)}): {', '.join(names[:MAX_NAMES])}{more}"


def _likely_cause(
    missing: list[str], extra: list[str], wrong: list[str]
) -> str:
  """One sentence on what usually makes such a difference."""
  def any_in(names, part):
    return any(part in name for name in names)

  if any_in(missing, "/SwitchFFN/") and any_in(extra, "/DenseReluDense/"):
    return "Likely cause: a dense model's checkpoint, and a Switch model now."
  if any_in(missing, "/DenseReluDense/") and any_in(extra, "/SwitchFFN/"):
    return "Likely cause: a Switch model's checkpoint, and a dense model now."
  if any_in(missing, "/SwitchFFN/") and any_in(extra, "/MoE1D/"):
    return "Likely cause: a checkpoint of mesh_tensorflow's MoE1D."
  if any_in(missing, "rms_norm") and any_in(extra, "layer_norm"):
    return "Likely cause: legacy names of the norms (LayerStack.dropout_rate)."
  if any_in(missing, "logits/kernel") or any_in(extra, "logits/kernel"):
    return ("Likely cause: Unitransformer.shared_embedding_and_softmax_weights "
            "differs.")
  if any_in(wrong, "/router/kernel"):
    return "Likely cause: SwitchFFN.num_experts differs."
  if any_in(wrong, "embedding"):
    return "Likely cause: another vocabulary, or d_model differs."
  if all("_slot_" in name for name in missing) and not wrong:
    return "Likely cause: another utils.run.optimizer wrote it."
  return "Likely cause: the number of layers or a size differs."
