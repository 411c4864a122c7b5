"""Rows of logits on disk, found by their tokens.

The directory holds

  about.json   the fields of `About`, and the number of steps written
  keys.bin     16 bytes per row: a hash of its inputs and targets
  logits.bin   float32 [row, targets, top_k]
  ids.bin      int32, same shape: the token of each logit; with top_k only
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
  """The teacher, data and sizes that a cache was computed from.

  Attributes:
    teacher: a hash of the checkpoint's index, which holds a checksum of each
      tensor.
    mixture: task or mixture of the rows.
    inputs: length of a row's inputs, in tokens.
    targets: length of a row's targets, in tokens.
    vocab: size of the vocabulary: the number of logits per token.
    top_k: number of logits per token that are kept; all if None.
  """

  teacher: str
  mixture: str
  inputs: int
  targets: int
  vocab: int
  top_k: int | None

  @property
  def kept(self) -> int:
    """Returns the number of logits per token that are kept."""
    return self.top_k or self.vocab


class LogitStore:
  """Rows of logits in a directory; see the module.

  Attributes:
    directory: folder of the cache.
    steps: number of steps whose rows are written.
  """

  def __init__(self, directory: str):
    """Records the directory and opens nothing yet.

    Args:
      directory: folder of the cache; `start` creates it.
    """
    self.directory = directory
    self.steps = 0
    self._about: About | None = None
    self._rows: dict[bytes, int] = {}
    self._lock = threading.Lock()

  @property
  def exists(self) -> bool:
    """Returns whether the directory holds a cache."""
    return os.path.exists(self._path("about.json"))

  def start(self, about: About) -> None:
    """Prepares for writing: starts a cache, or resumes one that matches.

    Args:
      about: description of the rows to be written.

    Raises:
      ValueError: if the directory holds a cache that does not match `about`.
    """
    if self.exists:
      self.open(**dataclasses.asdict(about))
    else:
      os.makedirs(self.directory, exist_ok=True)
      self._about = about
      self.note_steps(0)
    # A process that was stopped may have left rows without keys.
    for name, size in self._sizes().items():
      with open(self._path(name), "ab") as f:
        f.truncate(size * len(self._rows))

  def open(self, **wanted: Any) -> None:
    """Prepares for reading.

    Args:
      **wanted: fields of `About`, with the values that the cache must have.

    Raises:
      ValueError: if the directory holds no cache, or one that does not match.
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
            f"logit_cache: the cache must match this run, with {name}="
            f"{found[name]} in directory={self.directory}, {name}={value} in "
            "the run. Set logit_cache.directory to another folder, and fill it "
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
    """Records in about.json the number of batches written so far."""
    self.steps = steps
    fresh = self._path("about.json.new")
    with open(fresh, "w", encoding="utf-8") as f:
      json.dump({**dataclasses.asdict(self._about), "steps": steps}, f,
                indent=1)
    os.replace(fresh, self._path("about.json"))

  def write(
      self, inputs: np.ndarray, targets: np.ndarray, logits: np.ndarray
  ) -> None:
    """Appends the rows that the store does not hold yet.

    Args:
      inputs: int32 [rows, length].
      targets: int32 [rows, length].
      logits: float32 [rows, length, vocab].
    """
    with self._lock:  # processors of a mesh write at once, some the same rows
      new = {key: i for i, key in enumerate(_keys(inputs, targets))
             if key not in self._rows}
      kept = {"logits.bin": logits[list(new.values())]}
      if self._about.top_k:
        ids = np.argpartition(
            kept["logits.bin"], -self._about.top_k)[..., -self._about.top_k:]
        kept["logits.bin"] = np.take_along_axis(kept["logits.bin"], ids, -1)
        kept["ids.bin"] = ids.astype(np.int32)
      # Keys are written last: a row that has a key is complete.
      kept["keys.bin"] = np.frombuffer(b"".join(new), np.uint8)
      for name, array in kept.items():
        with open(self._path(name), "ab") as f:
          f.write(array.tobytes())
      for key in new:
        self._rows[key] = len(self._rows)

  def read(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the teacher's logits of rows.

    Args:
      inputs: int32 [rows, length].
      targets: int32 [rows, length].

    Returns:
      float32 [rows, length, vocab], -inf for logits that were not kept.

    Raises:
      ValueError: if a row is not in the cache.
    """
    found = [self._rows.get(key) for key in _keys(inputs, targets)]
    if None in found:
      raise ValueError(
          "logit_cache: each row of the run must be in the cache, with "
          f"{found.count(None)} of a batch's {len(found)} rows missing in "
          f"directory={self.directory}, which has {len(self):,} rows of the "
          f"first {self.steps:,} steps. Fill it with the seed, batch size and "
          "steps of this run (gin/runs/cache_logits.gin resumes a part-filled "
          "cache), or set logit_cache.directory = None.")
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
    """Returns the path of a file of the cache."""
    return os.path.join(self.directory, name)

  def _sizes(self) -> dict[str, int]:
    """Returns, by file, the number of bytes per row."""
    size = 4 * self._about.targets * self._about.kept
    return {"logits.bin": size, "keys.bin": KEY_BYTES} | (
        {"ids.bin": size} if self._about.top_k else {})


def _keys(inputs: np.ndarray, targets: np.ndarray) -> list[bytes]:
  """Returns the key of each row: a hash of its tokens."""
  return [
      hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=KEY_BYTES).digest()
      for x, y in zip(inputs, targets, strict=True)]
