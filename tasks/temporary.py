"""Temporary directories that a killed process cannot leave behind for ever."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def temporary_directory(parent: str, name: str) -> Iterator[str]:
  """Creates a directory in `parent`, and removes the directory at the end.

  A rename from this directory into `parent` is atomic. Directories that dead
  processes left under the same name are removed first.

  Args:
    parent: folder of the directory; created if missing.
    name: beginning of the directory's name, the same in every run.

  Yields:
    The path of the directory.

  Raises:
    ValueError: if `parent` cannot be written.
  """
  prefix = f"{name}.partial-{socket.gethostname()}-"
  try:
    os.makedirs(parent, exist_ok=True)
    _remove_leftovers(parent, prefix)
    path = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent)
  except OSError as e:
    raise ValueError(
        "cache_dir: the cache directory must be writable, with "
        f"path={parent}, error={e.strerror!r}. Set tasks.cache_dir.path = "
        "'<directory>', or the environment variable SWITCH_MTF_CACHE.") from e
  try:
    yield path
  finally:
    shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(parent: str, prefix: str) -> None:
  """Removes the temporary directories of processes that no longer run."""
  for entry in os.listdir(parent):
    process = entry.removeprefix(prefix).split("-")[0]
    if entry.startswith(prefix) and not _is_running(process):
      shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)


def _is_running(process: str) -> bool:
  """Returns whether a process of this machine still runs."""
  try:
    os.kill(int(process), 0)
  except (ProcessLookupError, ValueError):
    return False
  except PermissionError:
    return True
  return True
