"""Resolves gin files as `run_t5.py` does before it builds the graph."""

import copy
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils
from t5.models import mesh_transformer

from switch_mtf import gin_checks, gin_files
from switch_mtf.mesh import mesh_axis
from switch_mtf.upstream import fixes, seams

ROOT = pathlib.Path(__file__).parents[2]
# The run that a model, or a model with a layout, is planned as.
PAPER_RUN = "gin/experiments/paper/table9/_common.gin"
# The planner writes nothing, but without a name TensorFlow makes a folder.
NOWHERE = "model_dir"


@dataclasses.dataclass(frozen=True)
class Configuration:
  """A resolved training run.

  Attributes:
    mode: mode in the gin files: "train", "eval", ...
    arguments: arguments of `tpu_estimator_model_fn`, by name.
    train_steps: number of training steps.
    num_microbatches: number of microbatches of a step.
    device: kind of each processor, such as "tpu_v3".
    train_model_fn: function that `utils.run` would call to train.
    added: gin files and bindings that completed the given files to a run; None
      if the given files are a run.
  """

  mode: str
  arguments: dict[str, Any]
  train_steps: int
  num_microbatches: int
  device: str
  train_model_fn: Any
  added: tuple[list[str], list[str]] | None = None

  @property
  def is_tpu(self) -> bool:
    """Whether the layers compute as on TPU."""
    return self.device.startswith("tpu")

  @property
  def mesh_shape(self) -> mtf.Shape:
    """The mesh of the run."""
    return self.arguments["mesh_shape"]

  @property
  def layout_rules(self) -> mtf.LayoutRules:
    """The layout rules of the run."""
    return self.arguments["layout_rules"]

  @property
  def batch_size(self) -> int:
    """Sequences of a step, over all processors."""
    return self.arguments["batch_size"]

  @property
  def sequence_length(self) -> dict[str, int]:
    """Tokens of a sequence, by feature."""
    return self.arguments["sequence_length"]

  @property
  def tokens_per_step(self) -> int:
    """Tokens of a step, including padding."""
    return self.batch_size * sum(self.sequence_length.values())


def resolve(
    gin_paths: Sequence[str],
    gin_params: Sequence[str] = (),
    *,
    device: str | None = None,
    mesh_shape: str | None = None,
) -> Configuration:
  """Resolves gin files, on top of T5's defaults, to a training run.

  Clears gin's earlier bindings and keeps those of the run, which building the
  graph needs.

  Args:
    gin_paths: gin files, as for `run_t5.py`. The paper's pre-training is added
      to a model, or a model with a layout, in groups that fit the mesh.
    gin_params: bindings that override the files.
    device: kind of each processor; by default cpu for one processor and tpu_v3
      for several.
    mesh_shape: mesh that replaces `utils.run.mesh_shape`.

  Returns:
    The run.

  Raises:
    ValueError: if the run itself would raise one.
  """
  device, added = _parse(gin_paths, gin_params, device, mesh_shape)
  found = {}

  def note_steps(estimator, vocabulary, sequence_length, batch_size,
                 train_dataset_fn, train_steps, *args, **kwargs):
    found["train_steps"] = train_steps

  mode = bound("utils.run.mode", "train")
  train_model_fn = bound("utils.run.train_model_fn")
  with gin.unlock_config():
    gin.bind_parameter("utils.run.mode", "train")
    gin.bind_parameter("utils.run.dataset_split", "train")
    gin.bind_parameter("utils.run.train_model_fn", note_steps)
  with seams.arguments_of_model_fn() as arguments:
    utils.run(tpu_job_name=None, tpu=None, gcp_project=None, tpu_zone=None,
              model_dir=NOWHERE)
  num_microbatches = utils.serialize_num_microbatches(
      mtf.Dimension("batch", arguments["batch_size"] // replicas()),
      arguments["sequence_length"], arguments["mesh_shape"],
      arguments["layout_rules"])
  return Configuration(
      mode=mode, arguments=arguments, num_microbatches=num_microbatches,
      device=device, train_model_fn=train_model_fn, added=added, **found)


def _parse(
    paths: Sequence[str], params: Sequence[str], device: str | None,
    mesh_shape: str | None,
) -> tuple[str, tuple[list[str], list[str]] | None]:
  """Parses gin files as T5's main does, and locks the configuration.

  Returns:
    The kind of each processor, and the files and bindings that were added to
      the given files; None instead if nothing was added.
  """
  if not paths:
    raise ValueError(
        "planning: --gin_file must be given, with gin_file=None. Add "
        "--gin_file=gin/models/switch_base_e128.gin or another.")
  gin.clear_config()
  folders = [str(ROOT), gin_files.T5_FOLDER]
  for folder in folders:
    gin.add_config_file_search_path(folder)
  kinds = {pathlib.PurePath(path).parent.name for path in paths}
  files = _missing_files(kinds, mesh_shape, device)
  paths = [*paths, *files]
  mesh = [] if mesh_shape is None else [
      f"utils.run.mesh_shape = {str(mesh_shape)!r}"]
  gin_checks.check_run(paths, [*params, *mesh], folders, own_modules=True)
  gin.parse_config_files_and_bindings(
      [gin_files.DEFAULTS, *paths], params, finalize_config=False)
  gin.bind_parameter("utils.run.vocabulary", mesh_transformer.get_vocabulary())
  if mesh_shape is not None:
    gin.bind_parameter("utils.run.mesh_shape", mesh_shape)
  groups = _fit_groups() if files else []
  if device is None:
    mesh = bound("utils.run.mesh_shape", "")
    several = mtf.convert_to_shape(mesh).size > 1
    device = "tpu_v3" if several else "cpu"
  if not device.startswith("tpu"):  # as in T5's main
    for dtype in ("slice_dtype", "activation_dtype"):
      gin.bind_parameter(f"utils.get_variable_dtype.{dtype}", "float32")
    wanted = bound("precision.activation_dtype")
    if wanted is not None:
      gin.bind_parameter("utils.get_variable_dtype.activation_dtype", wanted)
  gin.finalize()
  if files and mesh_shape:
    groups.insert(0, f"utils.run.mesh_shape = '{mesh_shape}'")
  return device, (files, groups) if files else None


def _missing_files(
    kinds: set[str], mesh_shape: str | None, device: str | None
) -> list[str]:
  """Returns the files that complete a model, or a model with a layout.

  Args:
    kinds: names of the folders of the given files, such as "models".
    mesh_shape: mesh that replaces the layout's, or None.
    device: kind of each processor, or None.
  """
  if "models" not in kinds or not kinds <= {"models", "layouts"}:
    return []
  if "layouts" in kinds:
    return [PAPER_RUN]
  on_tpu = mesh_shape and (device is None or device.startswith("tpu"))
  layout = "tpu" if on_tpu else "single"
  return [f"gin/layouts/{layout}.gin", PAPER_RUN]


def _fit_groups() -> list[str]:
  """Binds the largest group sizes that divide a core's tokens.

  The model's own group size is the upper limit.

  Returns:
    The bindings, as gin text.
  """
  wanted = bound("SwitchFFN.group_size")
  if wanted is None:
    return []
  made = []
  mesh_shape, rules, lengths = map(bound, (
      "utils.run.mesh_shape", "utils.run.layout_rules", "%sequence_length"))
  batch = mtf.Dimension("batch", utils.compute_batch_size(
      lengths, mesh_shape, rules, bound("%batch_size")) // replicas())
  parts = utils.serialize_num_microbatches(
      batch, lengths, mtf.convert_to_shape(mesh_shape),
      mtf.convert_to_layout_rules(rules))
  _, ways = mesh_axis(batch, rules, mesh_shape)
  for stack, feature in (("encoder", "inputs"), ("decoder", "targets")):
    tokens = batch.size // parts // ways * lengths[feature]
    name = f"{stack}/SwitchFFN.group_size"
    size = max(size for size in range(1, wanted + 1) if tokens % size == 0)
    gin.bind_parameter(name, size)
    made.append(f"{name} = {size}")
  return made


def replicas() -> int:
  """Returns the number of expert replicas, which share the batch."""
  return bound("utils.tpu_estimator_model_fn.outer_batch_size", 1)


def bound(name: str, default: Any = None) -> Any:
  """Returns the value of a parameter or macro, as gin would pass it.

  Args:
    name: name, such as "SwitchFFN.group_size" or "%batch_size".
    default: value to return if nothing is bound.
  """
  try:
    return copy.deepcopy(gin.query_parameter(name))  # copying resolves macros
  except ValueError:
    return default


def start_graph_mode() -> None:
  """Sets TensorFlow up as T5's main does; once per process."""
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  fixes.use_resource_variables()
