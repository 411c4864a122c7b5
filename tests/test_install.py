"""What `pip install` leaves behind: the requirements, and this package."""

import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from setuptools.config.pyprojecttoml import read_configuration

from switch_mtf import doctor

ROOT = doctor.ROOT
PYPROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)
DECLARED = {requirement.name: requirement for requirement in map(
    Requirement, PYPROJECT["project"]["dependencies"])}


def test_every_installed_file_has_one_owner():
  assert doctor.shared_files() == {}


@pytest.mark.parametrize("package, owner", [
    ("seqio", "seqio"), ("tensorflow_datasets", "tensorflow-datasets"),
    ("tensorflow", "tensorflow"), ("t5", "t5"), ("keras", "keras"),
    ("mesh_tensorflow", "mesh-tensorflow"), ("gin", "gin-config"),
    ("sentencepiece", "sentencepiece"), ("numpy", "numpy"),
    ("tensorflow_text", "tensorflow-text")])
def test_package_has_one_owner(package, owner):
  owners = importlib.metadata.packages_distributions()[package]
  assert {name.lower().replace("_", "-") for name in owners} == {owner}


@pytest.mark.parametrize("name", ["seqio-nightly", "tfds-nightly"])
def test_stand_ins_have_no_modules(name):
  files = importlib.metadata.files(name)
  assert files
  assert {file.parts[0].split(".")[-1] for file in files} == {"dist-info"}


def test_lock_meets_the_requirements():
  pinned = doctor.pins(ROOT / "requirements.txt")
  lines = (ROOT / "requirements.in").read_text().splitlines()
  for line in filter(None, (line.split("#")[0].strip() for line in lines)):
    if line.startswith("./"):
      assert line.rsplit("/", 1)[1] in pinned
      assert (ROOT / line / "pyproject.toml").exists()
    else:
      requirement = Requirement(line)
      assert requirement.specifier.contains(pinned[requirement.name])


def test_no_torch():
  assert "torch" not in doctor.pins(ROOT / "requirements.txt")


def test_the_package_declares_what_the_requirements_list():
  lines = (ROOT / "requirements.in").read_text().splitlines()
  names = {str(Requirement(line)) for line in (
      line.split("#")[0].strip() for line in lines)
           if line and not line.startswith("./")}
  assert {str(requirement) for requirement in DECLARED.values()} == names


def test_the_package_declares_what_it_imports():
  imported = set()
  for path in (ROOT / "switch_mtf").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        imported |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        # "google" is a namespace of many packages.
        imported.add(node.module if node.module.startswith("google.")
                     else node.module.split(".")[0])
  imported -= {*sys.stdlib_module_names, "switch_mtf"}
  owners = importlib.metadata.packages_distributions() | {
      "google.protobuf.message": ["protobuf"]}
  # tensorflow pins the estimator, and brings it.
  declared = {re.sub("[_.]", "-", name) for name in (
      *DECLARED, "tensorflow-estimator")}
  for name in imported:
    assert {re.sub("[_.]", "-", o.lower()) for o in owners[name]} <= declared


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with the wheel's files; the wheel is built from a copy."""
  folder = tmp_path_factory.mktemp("wheel")
  copy = folder / "copy"
  shutil.copytree(ROOT / "switch_mtf", copy / "switch_mtf")
  for name in ("gin", "tasks"):  # must not be packed
    (copy / name).mkdir()
    (copy / name / "__init__.py").touch()
  shutil.copy(ROOT / "pyproject.toml", copy)
  subprocess.run(
      [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
       "--no-build-isolation", f"--wheel-dir={folder}", str(copy)], check=True)
  wheel, = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "site")
  return folder / "site"


def test_wheel_holds_every_module_and_nothing_else(installed):
  def modules(folder):
    return {p.relative_to(folder) for p in folder.rglob("*.py")}

  assert modules(installed) == {
      pathlib.Path("switch_mtf") / p for p in modules(ROOT / "switch_mtf")}


def test_every_module_of_the_wheel_can_be_imported(installed):
  code = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
for path in sorted(root.rglob("*.py")):
  name = ".".join(path.relative_to(root).with_suffix("").parts)
  module = importlib.import_module(name.removesuffix(".__init__"))
  assert module.__file__ == str(path), module.__file__
  print(name)
"""
  done = subprocess.run(
      [sys.executable, "-c", code, str(installed)], cwd=installed,
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "switch_mtf.planning.plan" in done.stdout.split()
