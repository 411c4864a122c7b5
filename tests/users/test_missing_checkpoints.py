"""No random weights, no other step, no lost checkpoint."""

import shutil

import pytest
from helpers.runs import run, student_flags, succeed, weights

FILES = ("input_filename = 'in'", "output_filename = 'out'",
         "inputs_filename = 'in'", "targets_filename = 'in'",
         "scores_filename = 'out'", "export_path = 'out'")
# Run file -> the macro that asks for a step.
STEPS = {"score": "score_checkpoint_step", "infer": "infer_checkpoint_step",
         "perplexity_eval": "eval_checkpoint_step",
         "eval": "eval_checkpoint_step", "export": "export_checkpoint_step"}


def refused(done):
  assert done.returncode == 1, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  return done.stderr.strip().splitlines()[-1]


def flags(teacher, mode, *params):
  used = [file for file in FILES if file.split("_")[0] in {
      "infer": ("input", "output"), "score": ("inputs", "targets", "scores"),
      "export": ("export",)}.get(mode, ())]
  return [f"--gin_file={teacher}/operative_config.gin",
          f"--gin_file=gin/runs/{mode}.gin",
          *(f"--gin_param={param}" for param in (*used, *params))]


@pytest.mark.parametrize("mode", STEPS)
def test_a_misspelt_folder_is_refused(mode, teacher):
  wrong = teacher.with_name("taecher")
  line = refused(run(wrong, *flags(teacher, mode)))
  assert line.startswith(
      "run_t5: --model_dir must be a folder with checkpoints, with "
      f"model_dir={wrong}, which does not exist; ")
  assert f"{teacher.name}." in line
  assert not wrong.exists()


@pytest.mark.parametrize("mode", STEPS)
def test_another_step_is_refused(mode, teacher):
  before = sorted(teacher.rglob("*"))
  line = refused(run(teacher, *flags(teacher, mode, f"{STEPS[mode]} = 19")))
  assert f"{STEPS[mode]}=19" in line and "steps there=0, 20" in line
  assert sorted(teacher.rglob("*")) == before


def test_a_model_api_run_is_refused_too(teacher):
  line = refused(run(
      teacher.with_name("taecher"), "--use_model_api", "--mode=eval",
      f"--gin_file={teacher}/operative_config.gin"))
  assert "which does not exist" in line


@pytest.mark.parametrize("mode", ["score", "export_score"])
def test_the_model_api_has_one_checkpoint_for_a_result(mode, teacher):
  line = refused(run(
      teacher, "--use_model_api", f"--mode={mode}", "--checkpoint_mode=all",
      f"--gin_file={teacher}/operative_config.gin"))
  assert f"{mode} must be of one checkpoint, with --checkpoint_steps=" in line


def test_a_result_says_its_step(teacher, tmp_path):
  (tmp_path / "in").write_text("The state of the <extra_id_0> is strong.\n")
  done = succeed(teacher, *flags(
      teacher, "infer", f"input_filename = '{tmp_path}/in'",
      f"output_filename = '{tmp_path}/out'", "batch_size = 4",
      "infer_checkpoint_step = [20, 20]"))
  assert done.stderr.count(f"infer: step 20 of {teacher}\n") == 1
  assert (tmp_path / "out-20").exists()


@pytest.fixture
def copy(teacher, tmp_path):
  """The teacher's checkpoints, without T5's file `checkpoint`."""
  folder = tmp_path / "copy"
  folder.mkdir()
  for path in teacher.glob("model.ckpt-20.*"):
    shutil.copy(path, folder)
  return folder


def test_training_goes_on_from_weights_without_their_list(copy, teacher):
  done = succeed(copy, f"--gin_file={teacher}/operative_config.gin",
                 "--gin_param=utils.run.train_steps = 21",
                 "--gin_param=utils.run.keep_checkpoint_max = 1",
                 "--gin_param=train_then.phases = []")
  assert f"training goes on from {copy}/model.ckpt-20, " in done.stderr
  assert "step 21" in done.stderr
  assert sorted(path.name for path in copy.glob("*.index")) == [
      "model.ckpt-21.index"]


def test_parts_of_weights_are_refused_everywhere(copy, teacher, tmp_path):
  part = next(copy.glob("*.data-*"))
  part.unlink()
  before = sorted(copy.iterdir())
  for model_dir, params in (
      (copy, [f"--gin_file={teacher}/operative_config.gin"]),
      (copy, flags(teacher, "perplexity_eval", "eval_checkpoint_step = -1")),
      (tmp_path / "tuned", [
          "--gin_file=tests/gin/tiny.gin", "--gin_param=utils.run."
          f"init_checkpoint = '{copy}/model.ckpt-20'"])):
    line = refused(run(model_dir, *params))
    assert "checkpoint must be whole, with " in line
    assert f"missing={part.name}" in line
  assert sorted(copy.iterdir()) == before
  assert not (tmp_path / "tuned").exists()


def test_a_teacher_must_be_there(teacher, tmp_path):
  line = refused(run(
      tmp_path / "student", *student_flags(teacher.with_name("taecher"))))
  assert line.startswith("distillation: the teacher's checkpoint must be there")
  assert f"nearest: {teacher}" in line
  assert "Set distill_from.checkpoint to" in line
  assert not (tmp_path / "student").exists()


def test_an_evaluation_reads_weights_without_their_list(copy, teacher):
  done = succeed(copy, *flags(teacher, "perplexity_eval",
                              "perplexity_eval_steps = 1"))
  assert "| step 20 |" in done.stdout


def test_fine_tuning_must_train(teacher, tmp_path):
  line = refused(run(
      tmp_path / "tuned", "--gin_file=tests/gin/tiny.gin",
      f"--gin_param=utils.run.init_checkpoint = '{teacher}/model.ckpt-20'",
      "--gin_param=train_steps = 20"))
  assert "train_steps=20, step of init_checkpoint=20" in line
  assert "Set train_steps = 40 for 20 more steps" in line
  assert not (tmp_path / "tuned").exists()


def test_fine_tuning_from_a_folder_is_refused(teacher, tmp_path):
  line = refused(run(
      tmp_path / "tuned", "--gin_file=tests/gin/tiny.gin",
      f"--gin_param=utils.run.init_checkpoint = '{teacher}'"))
  assert f"its last checkpoint is {teacher}/model.ckpt-20" in line


def test_fine_tuning_with_a_count_of_its_own(teacher, tmp_path):
  succeed(tmp_path, "--gin_file=tests/gin/tiny.gin",
          f"--gin_param=utils.run.init_checkpoint = '{teacher}/model.ckpt-20'",
          "--gin_param=tpu_estimator_model_fn.init_variable_filter = "
          "'^(?!global_step)'", "--gin_param=train_steps = 2",
          "--gin_param=train_then.phases = []")
  assert weights(tmp_path)["global_step"] == 2
