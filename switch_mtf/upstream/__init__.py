"""Every change that we make to an upstream package.

Import this package before `mesh_tensorflow`, `t5` or `seqio`: importing it
applies all patches, importing it again does nothing. No other package of ours
changes an upstream module.

  before_tensorflow   what must be decided before TensorFlow is imported; the
                      switch that turns everything off that is for speed alone
  fixes               what makes the stack work at all
  speed               the same numbers, sooner
  seams               what training, distillation and planning are built on
  late_imports        modules that wait until they are used
"""

import gc

from switch_mtf.upstream import before_tensorflow  # isort:skip
from switch_mtf.upstream.before_tensorflow import FAST  # isort:skip

_COLLECTS_GARBAGE = gc.isenabled()
before_tensorflow.hide_log()
if FAST:
  # Until the end of this file: nothing that is imported is garbage, and looking
  # for it takes a third of the time.
  gc.disable()
  before_tensorflow.use_onednn()
  before_tensorflow.put_off_imports()

from switch_mtf.upstream import fixes, seams, speed  # noqa: E402


def apply() -> None:
  """Applies every patch, in the order in which they depend on each other."""
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
  fixes.score_texts_off_tpu()
  fixes.decode_to_text()


try:
  apply()
finally:
  if _COLLECTS_GARBAGE:
    gc.enable()
