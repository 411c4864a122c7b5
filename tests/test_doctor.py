import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import types

import psutil
import pytest

from switch_mtf import doctor, errors
from switch_mtf.upstream import fixes

ROOT = doctor.ROOT
LINE = re.compile(r"(ok  |warn|FAIL)  \S+ *  .*")


def run_doctor(**changes):
  environment = dict(os.environ, **changes)
  environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
  return subprocess.run(
      [sys.executable, "-m", "switch_mtf.doctor"], capture_output=True,
      text=True, cwd=ROOT, env=environment)


def worst(check):
  """The level, text and remedy of a check's most serious finding."""
  found = list(doctor.findings_of(check))
  found.sort(key=lambda f: ["FAIL", "warn", "ok"].index(f.level))
  return found[0].level, found[0].finding, found[0].remedy


# The whole.


def test_ready():
  done = run_doctor()
  *findings, verdict = done.stdout.splitlines()
  assert done.returncode == 0, done.stdout
  assert all(LINE.fullmatch(line) for line in findings), done.stdout
  assert verdict.startswith("doctor: ready, with ")
  # On a fresh machine the bundled text is prepared now.
  assert all(line.startswith("public_domain_text: prepared in ")
             for line in done.stderr.splitlines()), done.stderr
  checked = {line.split()[1] for line in findings}
  assert checked >= {
      "python", "packages", "owners", "cpu", "onednn", "memory", "disk",
      "cache", "tensorflow", "imports", "mesh", "tasks", "vocabularies"}


def test_verdict_when_compat_refuses(tmp_path):
  # A TensorFlow that only has a version: upstream refuses it before it is used.
  for folder in ("tensorflow", "tensorflow/compat", "tensorflow/compat/v1"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text(
        "import types\n"
        "__version__ = '2.16.1'\n"
        "get_logger = lambda: types.SimpleNamespace(setLevel=id)\n"
        "__getattr__ = lambda name: object\n")
  done = run_doctor(PYTHONPATH=str(tmp_path))
  assert done.returncode == 1, done.stdout
  assert "Traceback" not in done.stdout + done.stderr
  assert ("FAIL  switch_mtf.upstream  switch_mtf: TensorFlow must be 2.15.x"
          in done.stdout)
  assert "not examined: devices, mesh, tasks, vocabularies" in done.stdout
  assert done.stdout.endswith("doctor: 1 findings stop a run.\n")


def test_verdict_when_tensorflow_cannot_be_imported(tmp_path):
  (tmp_path / "tensorflow.py").write_text("raise TypeError('wrong protobuf')")
  done = run_doctor(PYTHONPATH=str(tmp_path))
  assert done.returncode == 1, done.stdout
  assert "FAIL  upstream      TypeError: wrong protobuf  -> " in done.stdout


@pytest.mark.parametrize("levels, code, verdict", [
    (["ok", "ok"], 0, "doctor: ready, with 0 warnings."),
    (["ok", "warn"], 0, "doctor: ready, with 1 warnings."),
    (["FAIL", "warn", "FAIL"], 1, "doctor: 2 findings stop a run."),
])
def test_exit_code(monkeypatch, capsys, levels, code, verdict):
  monkeypatch.setattr(doctor, "examine", lambda: (
      doctor.Finding(level, "what", "found") for level in levels))
  assert doctor.main() == code
  assert capsys.readouterr().out.splitlines()[-1] == verdict


def test_line():
  assert str(doctor.Finding("ok", "mesh", "fine")) == "ok    mesh          fine"
  assert (str(doctor.Finding("FAIL", "mesh", "off", "mend it")) ==
          "FAIL  mesh          off  -> mend it")


def test_what_a_check_raises_is_a_finding():
  def broken():
    yield doctor.Finding("ok", "first", "fine")
    raise OSError("one\n\n  two\nthree\n")

  first, second = doctor.findings_of(broken)
  assert first.level == "ok"
  assert second[:3] == ("FAIL", "broken", "OSError: one ... three")


# Python and packages.


def test_python(monkeypatch):
  monkeypatch.setattr(sys, "version_info", (3, 12, 1))
  level, finding, remedy = worst(doctor.python)
  assert level == "FAIL"
  assert finding.endswith("must be 3.10 or 3.11")
  assert remedy.startswith("python3.11 -m venv")


def test_pythons_are_those_of_compat():
  for version in [(3, minor) for minor in range(8, 15)]:
    try:
      fixes.check_versions(version, "2.15.1")
      accepted = True
    except ImportError:
      accepted = False
    assert (version in doctor.PYTHONS) == accepted


LOCK = """\
# A comment.
./packaging/seqio-nightly
    # via t5
numpy==1.26.4
    # via tensorflow
six==1.17.0 ; python_version >= '3.0'
tomli==2.5.0 ; python_version < '3.0'
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A repository root with LOCK as its requirements.txt."""
  (tmp_path / "requirements.txt").write_text(LOCK)
  monkeypatch.setattr(doctor, "ROOT", tmp_path)
  return tmp_path


def install(monkeypatch, **versions):
  monkeypatch.setattr(
      doctor, "_installed", lambda name: versions.get(name.replace("-", "_")))


def test_pins(checkout):
  assert doctor.pins(checkout / "requirements.txt") == {
      "seqio-nightly": None, "numpy": "1.26.4", "six": "1.17.0"}


def test_packages_as_pinned(checkout, monkeypatch):
  install(monkeypatch, seqio_nightly="0.0.20", numpy="1.26.4", six="1.17.0")
  assert worst(doctor.packages)[:2] == ("ok", "3 as in requirements.txt")


def test_packages_missing(checkout, monkeypatch):
  install(monkeypatch, numpy="1.26.4")
  assert worst(doctor.packages) == (
      "FAIL", "missing: seqio-nightly, six", "pip install -r requirements.txt")


def test_packages_not_as_pinned(checkout, monkeypatch):
  install(monkeypatch, seqio_nightly="7", numpy="2.0.0", six="1.17.0")
  assert worst(doctor.packages) == (
      "warn", "not as pinned: numpy 2.0.0 (pinned: 1.26.4)",
      "pip install -r requirements.txt")


def test_packages_without_checkout(tmp_path, monkeypatch):
  monkeypatch.setattr(doctor, "ROOT", tmp_path)
  level, finding, remedy = worst(doctor.packages)
  assert (level, finding) == ("warn", f"no requirements.txt in {tmp_path}")
  assert remedy == "run the doctor from a checkout of the repository"


def test_many_names_are_cut():
  assert errors.some("abcdef") == "a, b, c, d and 2 more"


class Installed:
  """An installed distribution with the given files."""

  def __init__(self, name, *files):
    self.metadata = {"Name": name}
    self.files = files

  def read_text(self, name):
    assert name == "RECORD"
    return "".join(f'"{f}",sha256=0,1\n' for f in self.files) or None


def distributions(monkeypatch, *found):
  monkeypatch.setattr(doctor.metadata, "distributions", lambda: found)


def test_owners_clash(monkeypatch):
  distributions(
      monkeypatch,
      Installed("seqio", "seqio/__init__.py", "seqio/utils.py"),
      Installed("seqio-nightly", "seqio/__init__.py", "seqio/utils.py"),
      Installed("no record"))
  assert doctor.shared_files() == {
      "seqio/__init__.py": {"seqio", "seqio-nightly"},
      "seqio/utils.py": {"seqio", "seqio-nightly"}}
  assert worst(doctor.owners) == (
      "FAIL", "seqio and seqio-nightly both write seqio",
      "pip uninstall -y seqio seqio-nightly, then "
      "pip install -r requirements.txt")


def test_owners_may_share_a_namespace_and_a_script(monkeypatch):
  distributions(
      monkeypatch,
      Installed("protobuf", "google/protobuf/message.py", "../../bin/x"),
      Installed("google-auth", "google/auth/jwt.py", "../../bin/x"))
  assert worst(doctor.owners)[0] == "ok"


# The machine.


@pytest.mark.parametrize("flags, level, finding", [
    ({"sse4_2"}, "FAIL", "cores without AVX"),
    ({"avx"}, "warn", "cores with AVX alone"),
    ({"avx", "avx2", "fma", "amx_bf16"}, "ok", "cores with avx2 fma amx_bf16"),
    (None, "ok", "cores, features unknown")])
def test_cpu(monkeypatch, flags, level, finding):
  monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
  monkeypatch.setattr(doctor, "_cpu_flags", lambda: flags)
  cpu, onednn = doctor.cpu()
  assert cpu.level == level
  assert cpu.finding.endswith(finding)
  assert bool(cpu.remedy) == (level != "ok")
  assert (onednn.level, onednn.finding) == ("ok", "on")


def test_onednn(monkeypatch):
  monkeypatch.setattr(doctor, "_cpu_flags", lambda: {"avx", "avx2"})
  monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
  assert worst(doctor.cpu) == (
      "warn", "off, which makes training on CPU slower",
      "unset TF_ENABLE_ONEDNN_OPTS")


@pytest.mark.parametrize("gib, level, finding", [
    (0.5, "FAIL", "0.5 GiB free, must be 1"),
    (2, "warn", "2.0 GiB free, 4 is safer"),
    (8, "ok", "8.0 GiB free")])
def test_memory(monkeypatch, gib, level, finding):
  monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(
      available=int(gib * 2**30)))
  assert worst(doctor.memory) == (
      level, finding, "" if level == "ok" else
      "end other programs, or lower the batch size")


@pytest.mark.parametrize("gib, level, finding", [
    (0.2, "FAIL", "0.2 GiB free, must be 0.5"),
    (2, "warn", "2.0 GiB free, 5 is safer"),
    (50, "ok", "50.0 GiB free")])
def test_disk(monkeypatch, gib, level, finding):
  monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: (
      types.SimpleNamespace(free=int(gib * 2**30))))
  assert worst(doctor.disk) == (
      level, finding, "" if level == "ok" else
      "make room, or set --model_dir to another disk")


def test_cache(monkeypatch, tmp_path):
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path / "new" / "folder"))
  assert worst(doctor.cache) == (
      "ok", f"{tmp_path}/new/folder can be written", "")
  assert not list(tmp_path.iterdir())


def test_cache_refused(monkeypatch, tmp_path):
  # A file in place of a folder: it cannot be written into, even by root.
  (tmp_path / "file").touch()
  monkeypatch.setenv("SWITCH_MTF_CACHE", str(tmp_path / "file"))
  assert worst(doctor.cache) == (
      "FAIL", f"{tmp_path}/file: Not a directory",
      "set SWITCH_MTF_CACHE to a folder that can be written")


# What runs.


def test_upstream_is_named(monkeypatch):
  real = importlib.import_module

  def fail(name):
    if name == "seqio":
      raise ImportError("no seqio here")
    return real(name)

  monkeypatch.setattr(doctor.importlib, "import_module", fail)
  *_, last = doctor.upstream()
  assert last[:3] == ("FAIL", "seqio", "no seqio here")
  assert last.remedy.startswith("pip install -r requirements.txt, in a new ")


def see(monkeypatch, gpus=(), files=(), **environment):
  """Sets which GPUs TensorFlow and Linux see, and the environment."""
  import tensorflow as tf
  for name in ("TPU_NAME", "TPU_WORKER_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [
      types.SimpleNamespace(name=gpu) for gpu in gpus])
  monkeypatch.setattr(tf.config.experimental, "get_device_details",
                      lambda gpu: {"device_name": "H100"})
  monkeypatch.setattr(doctor.glob, "glob", lambda pattern: [
      f for f in files if pathlib.Path(f).match(pattern)])


def test_devices(monkeypatch):
  see(monkeypatch)
  assert worst(doctor.devices) == ("ok", "CPU only", "")
  see(monkeypatch, gpus=["/GPU:0"], files=["/dev/nvidia0"])
  assert worst(doctor.devices) == ("ok", "H100 as /GPU:0", "")
  see(monkeypatch, TPU_NAME="pod")
  assert worst(doctor.devices)[1].startswith("TPU_NAME=pod; ")


def test_gpu_not_seen(monkeypatch):
  see(monkeypatch, files=["/dev/nvidia0", "/dev/nvidia1"])
  level, finding, remedy = worst(doctor.devices)
  assert level == "warn"
  assert finding == "TensorFlow does not see /dev/nvidia0, /dev/nvidia1"
  assert remedy.startswith('pip install "tensorflow[and-cuda]==2.15.1"')


def test_mesh():
  assert worst(doctor.mesh)[0] == "ok"


def test_mesh_that_is_off(monkeypatch):
  import mesh_tensorflow as mtf
  einsum = mtf.einsum
  monkeypatch.setattr(mtf, "einsum", lambda *a: 2 * einsum(*a))
  level, finding, _ = worst(doctor.mesh)
  assert level == "FAIL"
  assert finding.startswith("2 x 2 processors are off by ")


def test_task_missing(monkeypatch):
  monkeypatch.setattr(doctor, "TASKS", ("no_such_task",))
  assert worst(doctor.tasks) == (
      "FAIL", "no_such_task is not registered", "git checkout -- tasks")


def test_vocabularies_missing(checkout):
  assert worst(doctor.vocabularies) == (
      "FAIL", "none in tasks/data", "git checkout -- tasks/data")


def test_vocabulary_that_cannot_be_read(checkout):
  (checkout / "tasks" / "data").mkdir(parents=True)
  (checkout / "tasks" / "data" / "bad.model").write_bytes(b"no model")
  level, finding, remedy = worst(doctor.vocabularies)
  assert level == "FAIL"
  assert re.match(r"bad\.model: \w+Error: ", finding)
  assert remedy == "git checkout -- tasks/data/bad.model"


def test_vocabulary_that_garbles(checkout, monkeypatch):
  import seqio
  (checkout / "tasks" / "data").mkdir(parents=True)
  (checkout / "tasks" / "data" / "odd.model").touch()
  monkeypatch.setattr(
      seqio, "SentencePieceVocabulary",
      lambda *a, **k: types.SimpleNamespace(
          encode=lambda text: [1], decode=lambda ids: "?"))
  assert worst(doctor.vocabularies) == (
      "FAIL", "odd.model: garbles 'the sea and the sky'",
      "git checkout -- tasks/data/odd.model")
