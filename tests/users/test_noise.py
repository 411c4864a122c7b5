"""Nothing of TensorFlow's is on the screen, unless it is asked for."""

import os
import subprocess
import sys

from helpers.runs import ROOT, succeed


def test_an_export_prints_lines_of_ours_only(teacher, tmp_path):
  done = succeed(
      teacher, f"--gin_file={teacher}/operative_config.gin",
      "--gin_file=gin/runs/export.gin",
      f"--gin_param=export_path = '{tmp_path}/exported'")
  assert list(tmp_path.glob("exported/*/saved_model.pb"))
  for word in ("ERROR", "WARNING", "Object was never used", "tf."):
    assert word not in done.stdout + done.stderr


def test_a_command_of_the_tasks_prints_lines_of_its_own_only():
  environment = {name: value for name, value in os.environ.items()
                 if name != "TF_CPP_MIN_LOG_LEVEL"}
  done = subprocess.run(
      [sys.executable, "-m", "tasks.fetch", "--help"], cwd=ROOT,
      env=environment, capture_output=True, text=True)
  assert done.returncode == 0 and "usage: fetch.py" in done.stdout
  assert done.stderr == ""
