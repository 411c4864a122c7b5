"""A training run is followed from beside it, checkpoint by checkpoint."""

import gin
import pytest
from helpers.checkpoints import save

from switch_mtf.training import following

pytestmark = pytest.mark.usefixtures("clean_gin")


def steps(paths):
  return [int(path.rpartition("-")[2]) for path in paths]


def test_every_checkpoint_up_to_the_last(tmp_path):
  save(tmp_path, 0, 5, 10, 20)
  gin.parse_config("utils.run.train_steps = 20")
  assert steps(following.follow(str(tmp_path))) == [5, 10, 20]


def test_what_is_written_meanwhile_comes_next(tmp_path, monkeypatch, capsys):
  gin.parse_config("utils.run.train_steps = 30")
  writes = iter([[], [10, 20], [30]])
  monkeypatch.setattr(
      following.time, "sleep", lambda _: save(tmp_path, *next(writes)))
  save(tmp_path, 5)
  assert steps(following.follow(str(tmp_path))) == [5, 10, 20, 30]
  said = capsys.readouterr().err.splitlines()
  assert [line.partition(": ")[2] for line in said] == [
      "waiting for checkpoints after step 5, until 30, the last",
      "waiting for checkpoints after step 20, until 30, the last"]


def test_without_a_last_step_it_goes_on(tmp_path, monkeypatch, capsys):
  save(tmp_path, 5)
  monkeypatch.setattr(following.time, "sleep", lambda _: save(tmp_path, 6))
  found = following.follow(str(tmp_path))
  assert steps([next(found), next(found)]) == [5, 6]
  assert "until interrupted" in capsys.readouterr().err
