"""Which of the teacher's weights a student takes over."""

import gin
import pytest
from helpers.configs import build

from switch_mtf.distillation import student_init

# The paper's students and teachers (Tables 6, 7, 8), and sizes for one CPU.
PAIRS = {
    "switch_tiny_e16": "tiny", "switch_mini_e16": "mini",
    "switch_small_e16": "small", "switch_base_e16": "t5_base",
    "switch_base_e128": "t5_base", "switch_large_e128": "t5_large",
}


def shapes(name):
  gin.clear_config()
  return {name: tuple(shape.to_integer_list)
          for name, shape in build(name, 512).items()}


@pytest.mark.usefixtures("clean_gin")
@pytest.mark.parametrize("teacher", PAIRS)
def test_all_but_experts_are_taken_over(teacher):
  student = shapes(PAIRS[teacher])
  experts = shapes(teacher)
  start = student_init.match(student, experts)
  taken = {source.variable for source in start.taken.values()}
  # Of the teacher all but experts and routers, each once.
  assert len(taken) == len(start.taken)
  assert taken == {name for name in experts if "/SwitchFFN/" not in name}
  for name, source in start.taken.items():
    assert student[name] == experts[source.variable]
    assert name.split("layer_")[-1][4:] == source.variable.split(
        "layer_")[-1][4:]
  # Fresh are the feed-forward layers in the place of experts, and they alone.
  assert all("/DenseReluDense/" in name for name in start.fresh)
  assert len(start.fresh) == sum(
      "/SwitchFFN/w" in name for name in experts)


@pytest.mark.usefixtures("clean_gin")
def test_experts_by_their_mean():
  student, teacher = shapes("small"), shapes("switch_small_e16")
  start = student_init.match(student, teacher, student_init.MEAN)
  assert not start.fresh
  # The second block of the student is the second half of the teacher's first.
  ffn = "encoder/block_001/layer_001/DenseReluDense/wi/kernel"
  assert start.taken[ffn] == student_init.Source(
      "encoder/block_000/layer_003/SwitchFFN/wi/kernel", student_init.MEAN)


def test_places_by_hand():
  # Blocks of two and of four sublayers: (1, 1) is (0, 3).
  student = {"decoder/block_000/layer_000/a": (1,),
             "decoder/block_001/layer_001/DenseReluDense/wi/kernel": (2, 3),
             "shared/embedding": (9, 2), "decoder/rms_norm/scale": (2,)}
  teacher = {"decoder/block_000/layer_000/a": (1,),
             "decoder/block_000/layer_003/SwitchFFN/wi/kernel": (8, 2, 3),
             "shared/embedding": (8, 2), "decoder/rms_norm/scale": (2,)}
  start = student_init.match(student, teacher, student_init.MOST_USED)
  assert start.taken == {
      "decoder/block_000/layer_000/a": student_init.Source(
          "decoder/block_000/layer_000/a"),
      "decoder/block_001/layer_001/DenseReluDense/wi/kernel":
          student_init.Source(
              "decoder/block_000/layer_003/SwitchFFN/wi/kernel",
              student_init.MOST_USED),
      "decoder/rms_norm/scale": student_init.Source("decoder/rms_norm/scale")}
  assert start.fresh == {"shared/embedding": (
      "[9, 2] in the student, [8, 2] in the teacher's shared/embedding")}


def test_a_shorter_student_takes_what_stands_outside_its_layers():
  start = student_init.match(
      {"encoder/block_000/layer_000/a": (1,), "shared/embedding": (8, 2)},
      {"encoder/block_000/layer_000/a": (1,),
       "encoder/block_001/layer_000/a": (1,), "shared/embedding": (8, 2)})
  assert set(start.taken) == {"shared/embedding"}
  assert start.fresh == {"encoder/block_000/layer_000/a": (
      "1 sublayers in the student's encoder, 2 in the teacher's")}
  assert student_init.lines(start) == [
      "a new student takes 1 of 2 variables from the teacher",
      "fresh: encoder/block_000/layer_000/a (1 sublayers in the student's "
      "encoder, 2 in the teacher's)"]


def test_nothing_fits():
  with pytest.raises(ValueError, match=(
      r"fitting=0 of 1; shared/embedding: \[9, 2\] in the student, \[8, 2\] in "
      r".*distillation.copy_weights = False")):
    student_init.match({"shared/embedding": (9, 2)},
                       {"shared/embedding": (8, 2)})
