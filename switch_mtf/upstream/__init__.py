"""Patches for upstream packages: all of the changes that this project makes.

Import this package before `mesh_tensorflow`, `t5` or `seqio`. Importing it
applies all patches but one, which `switch_mtf.kernels` applies when it is
imported: `speed.replace_attention_and_einsum`. Importing it again does nothing.
No other package of this project changes an upstream module.

  before_tensorflow   settings made before TensorFlow is imported; the switch
                      that turns off everything that is for speed alone
  fixes               patches without which the stack does not work
  speed               patches that compute the same numbers faster
  seams               openings for training, distillation and planning
  infer_and_score     lines of a user's file: as many results, evaluation's ids
  score_and_export    scores of ids, exports of whole sequences
  task_files          a task's files of lines, and the fields of each line
  cut_texts           how many texts of a task are cut
  task_examples       checks of the examples that a task begins with
  api_seams           the same where the model API has code of its own; runs
                      that are done
  checkpoint_seams    which checkpoints a run finds, and what it says of them
  vocabulary_ids      a vocabulary's ids, and what of a text is unknown
  text_files          a user's files of lines, and the errors for wrong ones
  late_imports        modules that are imported when they are first used
"""

import gc

from switch_mtf.upstream import before_tensorflow  # isort:skip
from switch_mtf.upstream.before_tensorflow import FAST  # isort:skip

_COLLECTS_GARBAGE = gc.isenabled()
before_tensorflow.hide_log()
if FAST:
  # Imports leave no garbage, and looking for some takes a third of their time.
  # Collection is turned on again at the end of this file.
  gc.disable()
  before_tensorflow.use_onednn()
  before_tensorflow.put_off_imports()


def apply() -> None:
  """Applies every patch; some patches depend on earlier ones."""
  fixes.check_versions()
  if FAST:
    speed.keep_freed_memory()
  fixes.restore_tensor_conversion_registry()
  fixes.leave_torch_out()
  fixes.use_resource_variables()
  if FAST:
    speed.read_variables_once()
    speed.remember_only_what_relu_gave()
    speed.differentiate_in_place()
    speed.reuse_constants()
    speed.forget_closed_scopes()
    speed.name_types_only_in_errors()
    speed.transpose_only_to_reorder()
    speed.leave_packing_as_written()
    speed.read_data_early()
    speed.write_graph_beside()
  seams.open_model_fn()
  training_step.open_microbatches()
  training_step.open_loss()
  fixes.decode_to_text()
  infer_and_score.apply()
  score_and_export.apply()
  task_files.apply()
  cut_texts.apply()
  vocabulary_ids.apply()
  fixes.repeat_random_draws()
  fixes.search_beams_exactly()


try:
  from switch_mtf.upstream import (
    cut_texts,
    fixes,
    infer_and_score,
    score_and_export,
    seams,
    speed,
    task_files,
    training_step,
    vocabulary_ids,
  )
  apply()
finally:
  if _COLLECTS_GARBAGE:
    gc.enable()
