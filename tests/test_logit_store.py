"""A teacher's logits on disk, by hand."""

import dataclasses

import numpy as np
import pytest

from switch_mtf.distillation.logit_store import About, LogitStore

ABOUT = About("hash", "task", inputs=2, targets=2, vocab=4, top_k=None)
ROWS = np.int32([[5, 6], [7, 0], [8, 1]])
LOGITS = np.float32(np.arange(24).reshape([3, 2, 4]))


def filled(path, about=ABOUT):
  store = LogitStore(str(path))
  store.start(about)
  store.write(ROWS, ROWS, LOGITS)
  store.note_steps(1)
  return store


def opened(path, **wanted):
  store = LogitStore(str(path))
  store.open(**wanted)
  return store


def test_rows_are_found_by_their_tokens(tmp_path):
  filled(tmp_path)
  store = opened(tmp_path, teacher="hash", vocab=4)
  order = [2, 0, 2]
  np.testing.assert_array_equal(
      store.read(ROWS[order], ROWS[order]), LOGITS[order])
  assert len(store) == 3 and store.steps == 1


def test_the_largest_are_kept_and_the_others_improbable(tmp_path):
  # By hand: of 3, 1, 2, 0 the two largest are the first and the third.
  about = dataclasses.replace(ABOUT, top_k=2)
  store = LogitStore(str(tmp_path))
  store.start(about)
  row = np.int32([[5, 6]])
  store.write(row, row, np.float32([[[3, 1, 2, 0], [0, 1, 2, 3]]]))
  low = -np.inf
  np.testing.assert_array_equal(
      opened(tmp_path).read(row, row), [[[3, low, 2, low], [low, low, 2, 3]]])
  assert (tmp_path / "logits.bin").stat().st_size == 2 * 2 * 4


def test_a_row_is_kept_once(tmp_path):
  store = filled(tmp_path)
  store.write(ROWS[:2], ROWS[:2], LOGITS[1:])  # as they were is what counts
  twice = np.int32([[9, 9], [9, 9]])
  store.write(twice, twice, LOGITS[:2])
  found = opened(tmp_path)
  assert len(found) == 4
  np.testing.assert_array_equal(found.read(ROWS, ROWS), LOGITS)
  # Of two rows in one batch that are alike, one of both.
  assert found.read(twice[:1], twice[:1])[0].tolist() in LOGITS[:2].tolist()


def test_what_was_half_written_is_written_again(tmp_path):
  filled(tmp_path)
  with open(tmp_path / "logits.bin", "ab") as f:
    f.write(b"half a row")
  with open(tmp_path / "keys.bin", "ab") as f:
    f.write(b"half")
  store = LogitStore(str(tmp_path))
  store.start(ABOUT)
  new = np.int32([[3, 3]])
  store.write(new, new, LOGITS[:1] + 50)
  found = opened(tmp_path)
  np.testing.assert_array_equal(found.read(new, new), LOGITS[:1] + 50)
  np.testing.assert_array_equal(found.read(ROWS, ROWS), LOGITS)


@pytest.mark.parametrize("name, value", [
    ("teacher", "another"), ("mixture", "other_task"), ("targets", 3),
    ("vocab", 8)])
def test_a_stale_cache_is_refused(tmp_path, name, value):
  filled(tmp_path)
  with pytest.raises(ValueError, match=(
      f"logit_cache: the cache must match this run, with {name}="
      f"{getattr(ABOUT, name)} in directory={tmp_path}, {name}={value} in the "
      "run. Set logit_cache.directory")):
    opened(tmp_path, **{name: value})


def test_a_cache_is_filled_as_it_was_begun(tmp_path):
  filled(tmp_path)
  with pytest.raises(ValueError, match="top_k=None in .* top_k=2 in the run"):
    LogitStore(str(tmp_path)).start(dataclasses.replace(ABOUT, top_k=2))


def test_a_missing_row_is_counted(tmp_path):
  filled(tmp_path)
  rows = np.int32([[5, 6], [1, 1]])
  with pytest.raises(ValueError, match=(
      "logit_cache: each row of the run must be in the cache, with 1 of a "
      f"batch's 2 rows missing in directory={tmp_path}, which has 3 rows of "
      "the first 1 steps.")):
    opened(tmp_path).read(rows, rows)
