"""What `pip install -r requirements-dev.txt` must have left behind."""

import importlib.metadata

import pytest
from packaging.requirements import Requirement

from switch_mtf import doctor

ROOT = doctor.ROOT


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
