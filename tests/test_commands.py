"""Every run_t5.py command of the docs and of gin files' headers is legal."""

import re
import shlex

import pytest
from helpers.graphs import ROOT

from switch_mtf import gin_checks, gin_files

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "gin").glob("**/*.gin"))]
# In place of a run's own, which is there when the run is.
OPERATIVE = "gin/experiments/demo_switch.gin"
# Of a row of a table, or of the reader's own files.
OPEN = re.compile(r"ROW|MODEL|X\.gin|\.\.\.")


def commands():
  """(page, arguments) of each command whose gin files are all named."""
  for page in PAGES:
    text = page.read_text()
    if page.suffix == ".gin":
      text = re.sub("^# ?", "", text, flags=re.MULTILINE)
    for found in re.finditer(
        r"python run_t5\.py((?:[^\n]*\\\n)*[^\n]*)", text):
      given = found[1].replace("\\\n", " ")
      if "--gin_file" in given and not OPEN.search(given):
        yield page.relative_to(ROOT).as_posix(), given


def values(arguments, flag):
  prefix = f"--{flag}="
  return [argument.removeprefix(prefix) for argument in arguments
          if argument.startswith(prefix)]


@pytest.mark.parametrize("page, given", list(commands()))
def test_command_is_legal(page, given, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = shlex.split(given, comments=True)
  files = [OPERATIVE if "operative_config" in path else path
           for path in values(arguments, "gin_file")]
  gin_checks.check_run(
      files, values(arguments, "gin_param"), [str(ROOT), gin_files.T5_FOLDER])


def test_commands_are_found():
  assert len(list(commands())) > 40
