"""A teacher's logits on disk: the file by hand, whole runs on top of it."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.graphs import ROOT
from helpers.runs import (
  losses,
  run,
  same_weights,
  student_flags,
  succeed,
  weights,
)

from switch_mtf.distillation.logit_store import About, LogitStore

FILL = "gin/runs/cache_logits.gin"
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


# The files.


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


# Runs.


def cached(teacher, directory, *params):
  return [*student_flags(teacher, *params),
          f"--gin_param=logit_cache.directory = '{directory}'"]


def fill(teacher, directory, model_dir, *params):
  return succeed(model_dir, *cached(teacher, directory, *params),
                 f"--gin_file={FILL}")


@pytest.fixture(scope="module")
def logits(teacher, tmp_path_factory):
  """A cache of all logits of the student's run."""
  directory = tmp_path_factory.mktemp("runs") / "logits"
  fill(teacher, directory, directory.parent / "filling")
  return directory


def test_cached_and_online_distillation_are_the_same(
    teacher, logits, tmp_path):
  succeed(tmp_path / "online", *student_flags(teacher))
  done = succeed(tmp_path / "cached", *cached(teacher, logits))
  assert losses(tmp_path / "cached") == losses(tmp_path / "online")
  assert same_weights(weights(tmp_path / "cached"),
                      weights(tmp_path / "online"))
  assert "a new student takes 22 of 26 variables" in done.stderr


def test_a_mesh_reads_what_one_processor_wrote(
    teacher, logits, tmp_path):
  # Two processors have half the batch each, and each half of the vocabulary.
  mesh = "--gin_file=gin/layouts/cpu_4_expert_model.gin"
  succeed(tmp_path / "online", *student_flags(teacher), mesh)
  succeed(tmp_path / "cached", *cached(teacher, logits), mesh)
  np.testing.assert_allclose(
      losses(tmp_path / "cached"), losses(tmp_path / "online"), rtol=1e-6)


def test_microbatches_read_their_rows(teacher, logits, tmp_path):
  succeed(tmp_path / "cached", *cached(
      teacher, logits,
      "serialize_num_microbatches.tokens_per_microbatch_per_replica = 64"))
  succeed(tmp_path / "whole", *cached(teacher, logits))
  np.testing.assert_allclose(
      losses(tmp_path / "cached"), losses(tmp_path / "whole"), rtol=1e-5)


def test_filling_goes_on_where_it_was(teacher, logits, tmp_path):
  for steps in (1, 4):
    fill(teacher, tmp_path / "logits", tmp_path / "run",
         f"train_steps = {steps}")
  for name in ("about.json", "keys.bin", "logits.bin"):
    assert ((tmp_path / "logits" / name).read_bytes()
            == (logits / name).read_bytes())
  assert json.loads((logits / "about.json").read_text())["steps"] == 4


def test_the_few_that_are_kept_are_the_largest(
    teacher, logits, tmp_path):
  fill(teacher, tmp_path / "logits", tmp_path / "run", "logit_cache.top_k = 5")
  whole, few = opened(logits), opened(tmp_path / "logits")
  assert list(few._rows) == list(whole._rows)
  shape = (len(few), whole._about.targets)
  right = np.sort(np.fromfile(logits / "logits.bin", np.float32).reshape(
      (*shape, -1)))[..., -5:]
  found = np.fromfile(tmp_path / "logits/logits.bin", np.float32)
  np.testing.assert_array_equal(np.sort(found.reshape((*shape, 5))), right)
  # And a student learns from them, otherwise than from all.
  for name, directory in (("few", tmp_path / "logits"), ("all", logits)):
    succeed(tmp_path / name, *cached(teacher, directory))
  assert losses(tmp_path / "few") != losses(tmp_path / "all")


def test_bad_caches_are_explained(teacher, logits, tmp_path):
  for number, (arguments, text) in enumerate((
      (cached(teacher, tmp_path),
       "the teacher's logits must have been written"),
      (cached(teacher, logits, "train_steps = 9"),
       "each row of the run must be in the cache, with 4 of a batch's 4 rows"),
      (cached(f"{teacher}/model.ckpt-0", logits),
       "the cache must match this run, with teacher="),
      ([*cached(teacher, logits, "logit_cache.top_k = 2000"),
        f"--gin_file={FILL}"], "the cache must match this run, with top_k="),
      ([*cached(teacher, tmp_path / "new", "logit_cache.top_k = 2000"),
        f"--gin_file={FILL}"], "top_k must be at most the size"),
      ([*student_flags(teacher), f"--gin_file={FILL}"],
       "a run that fills the cache must name its folder"))):
    done = run(tmp_path / str(number), *arguments)
    assert done.returncode == 1
    assert f"logit_cache: {text}" in done.stderr
    assert "Traceback" not in done.stderr


def test_page_names_the_options():
  page = (ROOT / "docs/distillation.md").read_text()
  for name in ("gin/runs/cache_logits.gin", "logit_cache.directory",
               "logit_cache.top_k"):
    assert name in page
