"""No random weights, no other step, no lost checkpoint."""

import shutil

import pytest
from helpers.runs import run, succeed, weights

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
                 "--gin_param=utils.run.keep_checkpoint_max = 1")
  assert "training goes on from step 20" in done.stderr
  assert "step 21" in done.stderr
  assert sorted(path.name for path in copy.glob("*.index")) == [
      "model.ckpt-21.index"]


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
          "'^(?!global_step)'", "--gin_param=train_steps = 2")
  assert weights(tmp_path)["global_step"] == 2
