"""A teacher's logits on disk: whole runs on top of them."""

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

from switch_mtf.distillation.logit_store import LogitStore

FILL = "gin/runs/cache_logits.gin"


def opened(path, **wanted):
  store = LogitStore(str(path))
  store.open(**wanted)
  return store


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
  noisy = "dropout_rate = 0.3"  # of the student alone
  succeed(tmp_path / "online", *student_flags(teacher, noisy))
  done = succeed(tmp_path / "cached", *cached(teacher, logits, noisy))
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
