"""Runs commands at the same time, each on its own processor cores."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO


def run(commands: Mapping[str, Sequence[str]]) -> dict[str, int]:
  """Runs commands until all have ended; if one fails, stops the others.

  A single command writes straight to the screen. With several, each line is
  printed after the name of its command. SIGTERM is passed on to all commands;
  Ctrl-C reaches them directly.

  Args:
    commands: name -> arguments, the program first.

  Returns:
    Name -> exit code, or minus the number of the signal that ended the command.
  """
  children = _start(commands)
  stopping = threading.Event()

  def stop(*unused) -> None:
    if not stopping.is_set():  # a second signal would cut off the checkpoint
      stopping.set()
      for child in children.values():
        if child.poll() is None:
          child.terminate()

  before = signal.signal(signal.SIGTERM, stop)
  printers = [
      threading.Thread(target=_hand_on, args=(name, source, to))
      for name, child in children.items() if child.stdout
      for source, to in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
  ]
  for printer in printers:
    printer.start()
  try:
    while None in (codes := [child.poll() for child in children.values()]):
      if any(codes):
        stop()
      try:
        time.sleep(0.1)
      except KeyboardInterrupt:
        stopping.set()
  finally:
    signal.signal(signal.SIGTERM, before)
    for printer in printers:
      printer.join()
  return {name: child.returncode for name, child in children.items()}


def _start(
    commands: Mapping[str, Sequence[str]]) -> dict[str, subprocess.Popen]:
  """Starts each command, on its share of the cores if there are several."""
  pipe = subprocess.PIPE if len(commands) > 1 else None
  # Otherwise Python buffers its output to a pipe, and lines appear late.
  environment = os.environ | {"PYTHONUNBUFFERED": "1"}
  children = {}
  for i, (name, command) in enumerate(commands.items()):
    children[name] = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment)
    if pipe and hasattr(os, "sched_setaffinity"):
      share = sorted(os.sched_getaffinity(0))[i::len(commands)]
      # Must come before the child imports TensorFlow, which counts the cores.
      os.sched_setaffinity(children[name].pid, share or os.sched_getaffinity(0))
  return children


def _hand_on(name: str, source: IO[str], to: IO[str]) -> None:
  """Prints each line of a command's output after the command's name."""
  for line in source:
    print(f"{name} | {line}", end="", file=to, flush=True)
