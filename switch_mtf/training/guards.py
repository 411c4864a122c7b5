"""Refuses a run that cannot work before it costs time, and says why."""

import importlib
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Sequence

import tensorflow.compat.v1 as tf

from switch_mtf.errors import counted, near, some
from switch_mtf.gin_files import Binding, Macro, Reference, setting
from switch_mtf.training import checkpoint_files

MAX_NAMES = 8


def check_gin_files(paths: list[str], search_paths: list[str]) -> None:
  """Raises ValueError if a gin file is missing or unreadable.

  Args:
    paths: values of --gin_file.
    search_paths: folders that gin searches besides the working directory.
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
  """Returns ', nearest: a.gin, b.gin', from the gin files of the folders."""
  known = []
  for folder in search_paths:
    for root, _, names in os.walk(folder):
      known += [os.path.relpath(os.path.join(root, name), folder)
                for name in names if name.endswith(".gin")]
  return near(path, known, cutoff=0.5)


def import_module(name: str) -> None:
  """Imports a module of --module_import.

  Args:
    name: full name of the module.

  Raises:
    ValueError: if it cannot be imported, with the place of the mistake.
  """
  try:
    importlib.import_module(name)
  except Exception as error:
    own = [frame for frame in traceback.extract_tb(error.__traceback__)
           if "importlib" not in frame.filename][1:]
    where = f", file={own[-1].filename}, line={own[-1].lineno}" if own else ""
    its_own = own or isinstance(error, SyntaxError)
    change = ("Correct the module" if its_own else "Write its name without "
              ".py, and set PYTHONPATH to its folder")
    raise ValueError(
        "run_t5: --module_import must name a module that can be imported, with "
        f"module={name}, error={type(error).__name__}: {error}{where}. "
        f"{change}. --verbosity=0 shows where it is imported.") from error


def check_devices(bindings: Sequence[Binding]) -> None:
  """Raises ValueError if a device of the mesh is not on this machine.

  TensorFlow would place its part of the mesh elsewhere, without a word.

  Args:
    bindings: all bindings of the run.

  Raises:
    ValueError: naming the devices that are missing, and those that are there.
  """
  asked, name = setting(bindings, "run.mesh_devices")
  if not isinstance(asked, list | tuple):
    return
  there = [f"{kind}:{number}" for kind in ("cpu", "gpu") for number in range(
      len(tf.config.list_physical_devices(kind.upper())))]
  missing = []
  for text in asked:
    found = re.fullmatch(r"(?:/?device:)?(cpu|gpu)(?::(\d+))?",
                         str(text).strip().lower().lstrip("/"))
    if not text or isinstance(text, Macro | Reference) or "job:" in str(text):
      continue  # anywhere, not known yet, or on another machine
    if not found or f"{found[1]}:{found[2] or 0}" not in there:
      missing.append(str(text))
  if missing:
    raise ValueError(
        "run_t5: the devices of the mesh must be on this machine, with "
        f"{name}={asked!r}, missing={some(dict.fromkeys(missing))}, there="
        f"{some(there)}. Correct {name}, or see with python -m "
        "switch_mtf.doctor why a device is not seen.")


def check_model_dir(model_dir: str) -> None:
  """Raises ValueError unless files can be written in `model_dir`.

  Creates the folder if it does not exist, and removes it again if the test file
  cannot be written.
  """
  if "://" in model_dir:
    return
  if model_dir.startswith("~"):
    raise ValueError(
        "run_t5: --model_dir must be a path that needs no shell, with "
        f"model_dir={model_dir}. Write --model_dir=$HOME{model_dir[1:]}.")
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
  """Raises ValueError unless the disk has room for the checkpoints of a run.

  Args:
    model_dir: folder of the run.
    variables: variables that a checkpoint holds.
    keep: number of checkpoints that the run keeps. None keeps all; this check
      then asks for room for two.
  """
  if "://" in model_dir:
    return
  size = sum(
      v.shape.num_elements() * v.dtype.base_dtype.size for v in variables)
  already = 0 if keep is None else sum(
      os.path.getsize(os.path.join(model_dir, name))
      for name in os.listdir(model_dir) if name.startswith("model.ckpt"))
  # The oldest checkpoint is deleted only after the newest is written.
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
    model_dir: folder of the run.
    variables: variables of the model's graph.
  """
  checkpoint = checkpoint_files.last(model_dir)
  if checkpoint is None:
    return
  stored = dict(tf.train.list_variables(checkpoint))
  wanted = {v.op.name: v.shape.as_list() for v in variables}

  def weights_first(name: str) -> tuple[bool, str]:
    return "_slot_" in name, name

  missing = sorted(set(wanted) - set(stored), key=weights_first)
  wrong = [f"{name} is {stored[name]} in the checkpoint and {wanted[name]} in "
           "the model" for name in sorted(wanted, key=weights_first)
           if name in stored and list(stored[name]) != wanted[name]]
  if not missing and not wrong:
    return
  extra = sorted(name for name in set(stored) - set(wanted)
                 if "_slot_" not in name)
  differences = "".join(
      f"; {counted(what, names, MAX_NAMES)}" for what, names in (
          ("different shapes", wrong), ("missing in checkpoint", missing),
          ("only in checkpoint", extra)) if names)
  raise ValueError(
      "run_t5: the checkpoint in --model_dir must be of this model, with "
      f"checkpoint={checkpoint}{differences}. "
      f"{_likely_cause(missing, extra, wrong)} Choose another "
      "--model_dir, or give the gin files of the run that wrote "
      f"{os.path.join(model_dir, 'operative_config.gin')}.")


def _likely_cause(
    missing: list[str], extra: list[str], wrong: list[str]
) -> str:
  """Returns a sentence that names the usual cause of such a difference."""
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
