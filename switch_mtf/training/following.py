"""Follows a training run from beside it: each of its checkpoints, in order."""

import sys
import time
from collections.abc import Iterator

import gin

from switch_mtf.training import checkpoint_files

SECONDS = 2.0  # between two looks into the folder


def follow(model_dir: str, last: int | None = None) -> Iterator[str]:
  """Yields the paths of a run's checkpoints as they are written.

  TensorFlow's `checkpoints_iterator` yields the last of them only, each time it
  is asked, and does not end. Step 0 is left out: it is not trained.

  Args:
    model_dir: folder of the run.
    last: step at which to end; by default that of `utils.run.train_steps`.

  Yields:
    The paths. A checkpoint may have been deleted when its turn comes.
  """
  end = last or gin.get_bindings("run").get("train_steps")
  end = end if isinstance(end, int) else None
  seen: set[int] = set()
  while end is None or max(seen, default=0) < end:
    new = [step for step in checkpoint_files.steps(model_dir)
           if step > max(seen, default=0)]
    if not new and checkpoint_files.steps(model_dir):
      until = f"{end:,}, the last" if end else "interrupted"
      print(f"{model_dir}: waiting for checkpoints after step "
            f"{max(seen, default=0):,}, until {until}", file=sys.stderr,
            flush=True)
    while not new:
      time.sleep(SECONDS)
      new = [step for step in checkpoint_files.steps(model_dir)
             if step > max(seen, default=0)]
    for step in new:
      seen.add(step)
      yield checkpoint_files.path(model_dir, step)
