"""Runs of `run_t5.py` for tests, most of them without starting Python anew."""

import importlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Importing T5 takes a third of a short run. It is done once, by a process from
# which most runs are forked.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["run_t5"])


def run(flags, *, forked=True, cwd=ROOT):
  """What the command prints and how it ends, a CompletedProcess."""
  argv = [sys.executable, "run_t5.py", *map(str, flags)]
  if not forked:
    return subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=300)
  with tempfile.TemporaryDirectory() as folder:
    printed = [os.path.join(folder, name) for name in ("stdout", "stderr")]
    child = FORKS.Process(target=_run_in_fork, args=(argv[1:], cwd, printed))
    child.start()
    child.join(300)
    child.kill()
    child.join()
    texts = [pathlib.Path(path).read_text() for path in printed]
  return subprocess.CompletedProcess(argv, child.exitcode, *texts)


def _run_in_fork(argv, cwd, printed):
  for number, path in enumerate(printed, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
  sys.argv = argv
  os.chdir(cwd)
  importlib.import_module("run_t5").console_entry_point()
