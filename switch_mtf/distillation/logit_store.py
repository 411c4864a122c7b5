"""Rows of logits on disk, found by the tokens that they are of.

In the directory:

  about.json   what the rows are of; the steps that were gone through
  keys.bin     16 bytes a row: a hash of its inputs and targets
  logits.bin   float32 [row, targets, top_k]
  ids.bin      int32 of the same shape, the token of each logit; with top_k only
"""

import dataclasses
import hashlib
import json
import os
import threading
from typing import Any

import numpy as np

KEY_BYTES = 16


@dataclasses.dataclass(frozen=True)
class About:
  """What a cache is of.

  Attributes:
    teacher: a hash of the checkpoint: of its index, which has one of each
      tensor.
    mixture: task or mixture of the rows.
    inputs: tokens of a row's inputs.
    targets: tokens of a row's targets.
    vocab: logits of a token.
    top_k: how many of them are kept; all if None.
  """

  teacher: str
  mixture: str
  inputs: int
  targets: int
  vocab: int
  top_k: int | None

  @property
  def kept(self) -> int:
    """Logits that are kept of a token."""
    return self.top_k or self.vocab


class LogitStore:
  """Rows of logits in a directory; see the module."""

  def __init__(self, directory: str):
    """Opens nothing yet.

    Args:
      directory: of the cache; made when it is first written to.
    """
    self.directory = directory
    self.steps = 0
    self._about: About | None = None
    self._rows: dict[bytes, int] = {}
    self._lock = threading.Lock()

  @property
  def exists(self) -> bool:
    """Whether anything was ever written."""
    return os.path.exists(self._path("about.json"))

  def start(self, about: About) -> None:
    """Makes ready to write: goes on with what is there, if it is of the same.

    Args:
      about: what will be written.

    Raises:
      ValueError: if something else is there.
    """
    if self.exists:
      self.open(**dataclasses.asdict(about))
    else:
      os.makedirs(self.directory, exist_ok=True)
      self._about = about
      self.note_steps(0)
    # What a process that was stopped has written of rows without keys.
    for name, size in self._sizes().items():
      with open(self._path(name), "ab") as f:
        f.truncate(size * len(self._rows))

  def open(self, **wanted: Any) -> None:
    """Makes ready to read.

    Args:
      **wanted: fields of `About` that it must have.

    Raises:
      ValueError: if there is nothing, or something else.
    """
    if not self.exists:
      raise ValueError(
          "logit_cache: the teacher's logits must have been written, with "
          f"directory={self.directory}. Run the same command with "
          "--gin_file=gin/runs/cache_logits.gin and a model_dir of its own, or "
          "set logit_cache.directory = None to run the teacher.")
    with open(self._path("about.json"), encoding="utf-8") as f:
      found = json.load(f)
    for name, value in wanted.items():
      if found[name] != value:
        raise ValueError(
            f"logit_cache: the cache must be of this run, with {name}="
            f"{found[name]} in directory={self.directory}, {name}={value} in "
            "the run. Set logit_cache.directory to another one, and fill it "
            "with gin/runs/cache_logits.gin.")
    self.steps = found.pop("steps")
    self._about = About(**found)
    keys = b""
    if os.path.exists(self._path("keys.bin")):
      with open(self._path("keys.bin"), "rb") as f:
        keys = f.read()
    self._rows = {keys[i:i + KEY_BYTES]: i // KEY_BYTES
                  for i in range(0, len(keys) - KEY_BYTES + 1, KEY_BYTES)}

  def __len__(self) -> int:
    return len(self._rows)

  def note_steps(self, steps: int) -> None:
    """Notes how many batches have been gone through."""
    self.steps = steps
    fresh = self._path("about.json.new")
    with open(fresh, "w", encoding="utf-8") as f:
      json.dump({**dataclasses.asdict(self._about), "steps": steps}, f,
                indent=1)
    os.replace(fresh, self._path("about.json"))

  def write(
      self, inputs: np.ndarray, targets: np.ndarray, logits: np.ndarray
  ) -> None:
    """Keeps the logits of rows that are not there.

    Args:
      inputs: int32 [rows, length].
      targets: int32 [rows, length].
      logits: float32 [rows, length, vocab].
    """
    with self._lock:  # processors of a mesh have the same rows, or others
      new = {key: i for i, key in enumerate(_keys(inputs, targets))
             if key not in self._rows}
      kept = {"logits.bin": logits[list(new.values())]}
      if self._about.top_k:
        ids = np.argpartition(
            kept["logits.bin"], -self._about.top_k)[..., -self._about.top_k:]
        kept["logits.bin"] = np.take_along_axis(kept["logits.bin"], ids, -1)
        kept["ids.bin"] = ids.astype(np.int32)
      kept["keys.bin"] = np.frombuffer(b"".join(new), np.uint8)  # the last
      for name, array in kept.items():
        with open(self._path(name), "ab") as f:
          f.write(array.tobytes())
      for key in new:
        self._rows[key] = len(self._rows)

  def read(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns what the teacher said.

    Args:
      inputs: int32 [rows, length].
      targets: int32 [rows, length].

    Returns:
      float32 [rows, length, vocab], -inf where nothing was kept.

    Raises:
      ValueError: if a row is not there.
    """
    found = [self._rows.get(key) for key in _keys(inputs, targets)]
    if None in found:
      raise ValueError(
          "logit_cache: each row of the run must be in the cache, with "
          f"{found.count(None)} of a batch's {len(found)} rows missing in "
          f"directory={self.directory}, which has {len(self):,} rows of the "
          f"first {self.steps:,} steps. Fill it with the seed, batch size and "
          "steps of this run (gin/runs/cache_logits.gin goes on where it was), "
          "or set logit_cache.directory = None.")
    about = self._about
    shape = (len(self._rows), about.targets, about.kept)
    kept = np.memmap(self._path("logits.bin"), np.float32, "r", shape=shape)
    if about.top_k is None:
      return kept[found]
    ids = np.memmap(self._path("ids.bin"), np.int32, "r", shape=shape)
    logits = np.full((len(found), about.targets, about.vocab), -np.inf,
                     np.float32)
    np.put_along_axis(logits, ids[found], kept[found], -1)
    return logits

  def _path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  def _sizes(self) -> dict[str, int]:
    """File -> bytes of a row."""
    size = 4 * self._about.targets * self._about.kept
    return {"logits.bin": size, "keys.bin": KEY_BYTES} | (
        {"ids.bin": size} if self._about.top_k else {})


def _keys(inputs: np.ndarray, targets: np.ndarray) -> list[bytes]:
  return [
      hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=KEY_BYTES).digest()
      for x, y in zip(inputs, targets, strict=True)]
