"""The teacher of a distillation: what is read of its run, errors."""

import pytest

from switch_mtf.distillation import teacher as teachers
from switch_mtf.distillation.teacher import Teacher


def test_most_used_expert_is_read(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(
      f'\n{{"kind": "train", "step": {step}, "loss": 1.0, '
      f'"encoder/block_000/layer_003/expert_load": {load}}}'
      for step, load in ((100, [.7, .2, .1]), (200, [.2, .3, .5]))))
  assert teachers.most_used_experts(str(tmp_path)) == {
      "encoder/block_000/layer_003": 2}


def test_no_record_of_experts(tmp_path):
  with pytest.raises(ValueError, match=(
      "must have recorded .*model_dir=.*distillation.replaced")):
    teachers.most_used_experts(str(tmp_path))


def test_teacher_must_be_there(tmp_path):
  with pytest.raises(ValueError, match=(
      "gin file must be there, with config=.*operative_config.gin.*"
      "distill_from.checkpoint")):
    teachers.distill_from(str(tmp_path))
  with pytest.raises(ValueError, match=(
      "checkpoint must be there, with .*distill_from.checkpoint")):
    Teacher(str(tmp_path), None).trained()
