"""Files of lines: as many results as lines, or an error, in infer and score."""

import pytest
import tensorflow.compat.v1 as tf
from helpers.runs import run, succeed

LINE, TARGET = "The state of the <extra_id_0> is strong.", "<extra_id_0> union"
LONG = "The people of the United States are prosperous and free. " * 4


def flags(teacher, mode, *params):
  return [f"--gin_file={teacher}/operative_config.gin",
          f"--gin_file=gin/runs/{mode}.gin", "--gin_param=batch_size = 4",
          *(f"--gin_param={param}" for param in params)]


def infer(teacher, folder, content, *params, how=succeed):
  (folder / "in.txt").write_bytes(content)
  done = how(teacher, *flags(
      teacher, "infer", f"input_filename = '{folder}/in.txt'",
      f"output_filename = '{folder}/out'", *params))
  return done, [line for path in folder.glob("out-*")
                for line in path.read_text().splitlines()]


def score(teacher, folder, inputs, targets, *params, how=succeed):
  (folder / "in.txt").write_text(inputs)
  (folder / "t.txt").write_text(targets)
  done = how(teacher, *flags(
      teacher, "score", f"inputs_filename = '{folder}/in.txt'",
      f"targets_filename = '{folder}/t.txt'",
      f"scores_filename = '{folder}/out'", *params))
  return done, [
      path.read_text().splitlines()
      for path in (folder / f"out.{name}"
                   for name in ("scores", "lengths", "targets"))
      if path.exists()]


def test_each_line_has_its_results(teacher, tmp_path):
  content = f"{LINE}\r\n\n{LONG}\n{LINE}\u2028{LINE}\n{LINE}\n\n".encode()
  done, lines = infer(teacher, tmp_path, content, "decode_from_file.repeats=2")
  assert len(lines) == 12
  assert lines[::2] == lines[1::2]
  assert lines[0] == lines[8] and lines[2] == lines[10]  # equal lines
  assert (f"{tmp_path}/in.txt: 1 of 6 lines cut at 32 tokens: set "
          "utils.run.sequence_length = {'inputs': ") in done.stderr


def test_a_long_line_is_that_of_its_beginning(teacher, tmp_path):
  # Whatever follows what is cut, the answer is the same.
  _, lines = infer(
      teacher, tmp_path, f"{LONG}\n{LONG} and more\n{LONG * 500}".encode())
  assert len(lines) == 3 and len(set(lines)) == 1


@pytest.mark.parametrize("content, said", [
    (b"A\nna\xefve\n", "must be UTF-8 text, with input_filename=FOLDER/in.txt, "
     "line=2, byte=3 (0xef). If "),
    (b"", "must hold at least one line, with input_filename=FOLDER/in.txt, ")])
def test_a_wrong_file_is_refused(content, said, teacher, tmp_path):
  done, lines = infer(teacher, tmp_path, content, how=run)
  assert done.returncode == 1 and not lines
  assert f"infer: the file {said}".replace("FOLDER", str(tmp_path)) in (
      done.stderr)
  assert "Traceback" not in done.stderr


def test_a_folder_and_a_missing_file_are_refused(teacher, tmp_path):
  for name, said in ((".", "is a folder"), ("inn.txt", "does not exist, near")):
    done, lines = infer(teacher, tmp_path, b"A\n",
                        f"input_filename = '{tmp_path}/{name}'", how=run)
    assert done.returncode == 1 and not lines
    assert f"input_filename={tmp_path}/{name}, which {said}" in done.stderr


def test_scores_stand_beside_their_lines(teacher, tmp_path):
  _, (scores, lengths, targets) = score(
      teacher, tmp_path, f"{LINE}\n\n{LINE}", f"{TARGET}\n{TARGET}\n\n")
  assert [len(x) for x in (scores, lengths, targets)] == [3, 3, 3]
  assert targets == [TARGET, TARGET, ""] and lengths[2] == "1"
  assert len(set(scores)) == 3


def test_a_target_is_scored_whole(teacher, tmp_path):
  # Targets that differ after the length had equal scores.
  targets = "".join(f"{LONG} {end}\n" for end in ("A", "B", "C"))
  done, files = score(teacher, tmp_path, f"{LINE}\n" * 3, targets, how=run)
  assert done.returncode == 1 and not files
  assert "targets_filename=" in done.stderr and "lines=1, 2, 3" in done.stderr
  binding = done.stderr.split("Set ")[1].split(", or shorten")[0]
  _, (scores, lengths, _) = score(
      teacher, tmp_path, f"{LINE}\n" * 3, targets, binding)
  assert len(set(scores)) == 3 and all(int(n) > 16 for n in lengths)


def test_unequal_numbers_are_refused(teacher, tmp_path):
  def lines(number):
    return "".join(f"{LINE}\n" for _ in range(number))

  done, files = score(teacher, tmp_path, lines(2), f"{TARGET}\n" * 4, how=run)
  assert done.returncode == 1 and not files
  assert (f"inputs=2 ({tmp_path}/in.txt), targets=4 ({tmp_path}/t.txt), "
          in done.stderr)
  _, (scores, *_) = score(teacher, tmp_path, lines(2), f"{TARGET}\n" * 4,
                          "targets_per_input.value = 2")
  assert len(scores) == 4 and len(set(scores)) == 1


def test_a_file_that_is_read_is_not_replaced(teacher, tmp_path):
  (tmp_path / "out.targets").write_text(f"{TARGET}\n")
  done, files = score(teacher, tmp_path, f"{LINE}\n", "", "targets_filename = "
                      f"'{tmp_path}/out.targets'", how=run)
  assert done.returncode == 1
  assert files == [[TARGET]]
  assert "score: results must not replace the file" in done.stderr


def test_an_exported_model_scores_the_same(teacher, tmp_path):
  inputs, targets = [LINE, "", LONG], [TARGET, "", "A"]
  _, (scores, *_) = score(
      teacher, tmp_path, "\n".join(inputs), "\n".join(targets) + "\n")
  succeed(teacher, *flags(teacher, "export", f"export_path = '{tmp_path}/to'",
                          "export_mode = 'export_score'"))
  path, = (tmp_path / "to").iterdir()
  with tf.Session() as session:
    loaded = tf.saved_model.loader.load(session, ["serve"], str(path))
    signature = loaded.signature_def["serving_default"]

    def exported(targets):
      return session.run(signature.outputs["scores"].name, {
          signature.inputs["inputs"].name: inputs,
          signature.inputs["targets"].name: targets})

    assert exported(targets) == pytest.approx(
        [float(s) for s in scores], rel=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="score: every "
                       "target must fit into the length, with length=16"):
      exported([LONG, "", "A"])
