"""What a line gets does not depend on the other lines of its batch."""

import pytest
from helpers.runs import succeed

SAID = "Experts drop no token (drop_nothing.value = True)."
LINE, TARGET = "The state of the <extra_id_0> is strong.", "<extra_id_0> union"
OTHERS = ("Call me <extra_id_0>. Some years ago, never mind how long.",
          "Of Man's first <extra_id_0>, and the fruit of that tree.")


# All sequences of a batch compete for slots, and there are too few.
TIGHT = [f"{stack}/SwitchFFN.{option}" for stack in ("encoder", "decoder")
         for option in ("group_size = 1024", "capacity_factor_eval = 0.5")]


def flags(teacher, run, *params):
  return [f"--gin_file={teacher}/operative_config.gin",
          f"--gin_file=gin/runs/{run}.gin", "--gin_param=batch_size = 12",
          *(f"--gin_param={param}" for param in (*TIGHT, *params))]


def score(teacher, folder, inputs, *params):
  (folder / "inputs").write_text("".join(f"{line}\n" for line in inputs))
  (folder / "targets").write_text(f"{TARGET}\n" * len(inputs))
  done = succeed(teacher, *flags(
      teacher, "score", *params, f"inputs_filename = '{folder}/inputs'",
      f"targets_filename = '{folder}/targets'",
      f"scores_filename = '{folder}/out'"))
  path, = folder.glob("out*.scores")
  return done, path.read_text().split()


def test_equal_pairs_have_one_score(teacher, tmp_path):
  done, scores = score(teacher, tmp_path, [LINE] * 12)
  assert len(scores) == 12 and len(set(scores)) == 1
  assert SAID in done.stderr


def test_a_score_is_that_of_the_line_alone(teacher, tmp_path):
  _, scores = score(teacher, tmp_path, [LINE, *OTHERS * 5, LINE])
  (tmp_path / "alone").mkdir()
  _, (alone, *_) = score(teacher, tmp_path / "alone", [LINE])
  assert float(scores[0]) == float(scores[-1]) == pytest.approx(
      float(alone), abs=1e-3)


def test_the_capacity_can_be_had(teacher, tmp_path):
  done, scores = score(
      teacher, tmp_path, [LINE] * 12, "drop_nothing.value = False")
  assert len(set(scores)) > 1
  assert SAID not in done.stderr


def test_equal_lines_have_one_answer(teacher, tmp_path):
  inputs = tmp_path / "inputs"
  inputs.write_text(f"{LINE}\n" * 12)
  done = succeed(teacher, *flags(
      teacher, "infer", f"input_filename = '{inputs}'",
      f"output_filename = '{tmp_path}/out'"))
  path, = tmp_path.glob("out*")
  lines = path.read_text().splitlines()
  assert len(lines) == 12 and len(set(lines)) == 1
  assert SAID in done.stderr
