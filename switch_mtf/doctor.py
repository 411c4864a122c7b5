"""Checks whether this machine can run switch_mtf, and says what to change.

    python -m switch_mtf.doctor

prints one line per finding. The exit status is 1 if a run would fail, else 0.
A check is a function that yields findings. Each check imports what it examines,
because that import may be broken. An exception becomes a finding too.
"""

import collections
import csv
import glob
import importlib
import importlib.util
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import NamedTuple

from switch_mtf.errors import some

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 11))
TASKS = ("public_domain_span_corruption", "public_domain_span_corruption_1k")
GIB = 2**30
INSTALL = "pip install -r requirements.txt"


class Finding(NamedTuple):
  """One line of the report: a finding, and a remedy if one is needed."""

  level: str
  what: str
  finding: str
  remedy: str = ""

  def __str__(self) -> str:
    line = f"{self.level:<4}  {self.what:<12}  {self.finding}"
    return f"{line}  -> {self.remedy}" if self.remedy else line


Check = Callable[[], Iterator[Finding]]


def python() -> Iterator[Finding]:
  """Checks that TensorFlow 2.15 and TFDS have releases for this Python."""
  found = f"{sys.version.split()[0]} ({sys.executable})"
  if tuple(sys.version_info[:2]) in PYTHONS:
    yield Finding("ok", "python", found)
  else:
    yield Finding("FAIL", "python", f"{found}, must be 3.10 or 3.11",
                  f"python3.11 -m venv .venv, then .venv/bin/{INSTALL}")


def pins(requirements: pathlib.Path) -> dict[str, str | None]:
  """Reads a lock file: name -> version, None for a folder of this repository.

  Skips lines whose marker excludes this interpreter or platform.
  """
  from packaging.requirements import Requirement
  versions = {}
  for line in requirements.read_text().splitlines():
    line = line.split("#")[0].strip()
    if line.startswith("./"):
      versions[line.rsplit("/", 1)[1]] = None
    elif line:
      requirement = Requirement(line)
      if requirement.marker is None or requirement.marker.evaluate():
        versions[requirement.name] = str(requirement.specifier).lstrip("=")
  return versions


def _installed(name: str) -> str | None:
  """Returns the installed version of a package, or None."""
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def packages() -> Iterator[Finding]:
  """Checks that the packages of requirements.txt are installed as pinned."""
  if not (ROOT / "requirements.txt").exists():
    yield Finding("warn", "packages", f"no requirements.txt in {ROOT}",
                  "run the doctor from a checkout of the repository")
    return
  pinned = pins(ROOT / "requirements.txt")
  found = {name: _installed(name) for name in pinned}
  missing = [name for name in pinned if found[name] is None]
  other = [f"{name} {found[name]} (pinned: {pin})"
           for name, pin in pinned.items()
           if found[name] is not None and pin not in (None, found[name])]
  if missing:
    yield Finding("FAIL", "packages", f"missing: {some(missing)}", INSTALL)
  if other:
    yield Finding("warn", "packages", f"not as pinned: {some(other)}", INSTALL)
  if not missing and not other:
    yield Finding("ok", "packages", f"{len(pinned)} as in requirements.txt")


def shared_files() -> dict[str, set[str]]:
  """Finds files that several installed distributions claim as their own.

  The distribution installed last has written such a file, and uninstalling
  either removes it. Scripts outside site-packages do not count: tensorboard and
  tensorflow share one.

  Returns:
    Path below site-packages -> names of two or more distributions.
  """
  owners = collections.defaultdict(set)
  for distribution in metadata.distributions():
    name = distribution.metadata["Name"]
    record = distribution.read_text("RECORD") or ""
    for path, *_ in filter(None, csv.reader(record.splitlines())):
      if not path.startswith("..") and "__pycache__" not in path:
        owners[path].add(name)
  return {path: names for path, names in owners.items() if len(names) > 1}


def owners() -> Iterator[Finding]:
  """Checks that packages, such as seqio and its nightly, share no files."""
  groups = collections.defaultdict(set)
  for path, names in shared_files().items():
    groups[tuple(sorted(names))].add(path.split("/")[0])
  for names, folders in groups.items():
    yield Finding(
        "FAIL", "owners",
        f"{' and '.join(names)} both write {some(sorted(folders))}",
        f"pip uninstall -y {' '.join(names)}, then {INSTALL}")
  if not groups:
    yield Finding("ok", "owners", "every file belongs to one package")


def _cpu_flags() -> set[str] | None:
  """Returns the CPU features that Linux reports, or None if it reports none."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return None
  flags = [line.split(":", 1)[1] for line in lines if line.startswith("flags")]
  return set(flags[0].split()) if flags else None


def cpu() -> Iterator[Finding]:
  """Checks for AVX, which TensorFlow's wheels need, and for a fast oneDNN.

  oneDNN is fast with AVX2 or more, and must not be turned off.
  """
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
           else os.cpu_count())
  flags = _cpu_flags()
  if flags is None:
    yield Finding("ok", "cpu", f"{cores} cores, features unknown")
  elif "avx" not in flags:
    yield Finding("FAIL", "cpu", f"{cores} cores without AVX",
                  "use another machine: TensorFlow's wheels need AVX")
  elif "avx2" not in flags:
    yield Finding("warn", "cpu", f"{cores} cores with AVX alone",
                  "expect slow matrix products, or use a newer CPU")
  else:
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
    found = " ".join(flag for flag in known if flag in flags)
    yield Finding("ok", "cpu", f"{cores} cores with {found}")
  if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false"):
    yield Finding("warn", "onednn", "off, which makes training on CPU slower",
                  "unset TF_ENABLE_ONEDNN_OPTS")
  else:
    yield Finding("ok", "onednn", "on")


def _amount(
    what: str, free: int, fail: float, warn: float, remedy: str
) -> Iterator[Finding]:
  """Compares an amount of bytes with two limits in GiB."""
  level = ("FAIL" if free < fail * GIB else
           "warn" if free < warn * GIB else "ok")
  limit = {"FAIL": f", must be {fail:g}", "warn": f", {warn:g} is safer"}
  yield Finding(level, what, f"{free / GIB:.1f} GiB free{limit.get(level, '')}",
                remedy if level != "ok" else "")


def memory() -> Iterator[Finding]:
  """Checks the free memory, of which the imports alone take 0.7 GiB."""
  import psutil
  yield from _amount("memory", psutil.virtual_memory().available, 1, 4,
                     "end other programs, or lower the batch size")


def disk() -> Iterator[Finding]:
  """Checks the free space of the current directory.

  Checkpoints go to model_dir, which is below it by default.
  """
  yield from _amount("disk", shutil.disk_usage(os.getcwd()).free, 0.5, 5,
                     "make room, or set --model_dir to another disk")


def cache() -> Iterator[Finding]:
  """Checks that the folder where tasks prepare their data is writable."""
  folder = pathlib.Path(os.path.expanduser(
      os.environ.get("SWITCH_MTF_CACHE") or "~/.cache/switch_mtf"))
  existing = next(p for p in (folder, *folder.parents) if p.exists())
  try:
    with tempfile.TemporaryFile(dir=existing):
      yield Finding("ok", "cache", f"{folder} can be written")
  except OSError as error:
    yield Finding("FAIL", "cache", f"{folder}: {error.strerror}",
                  "set SWITCH_MTF_CACHE to a folder that can be written")


def upstream() -> Iterator[Finding]:
  """Checks that TensorFlow, Mesh-TF, T5 and seqio import with our patches."""
  tf = importlib.import_module("tensorflow")
  yield Finding("ok", "tensorflow", tf.__version__)
  tf.get_logger().setLevel(logging.ERROR)
  for module in ("switch_mtf.upstream", "mesh_tensorflow", "seqio",
                 "t5.models"):
    try:
      importlib.import_module(module)
    except ImportError as error:
      text = str(error)
      # Our own error texts already end in a remedy.
      remedy = "" if text.startswith("switch_mtf:") else (
          f"{INSTALL}, in a new virtual environment if that changes nothing")
      yield Finding("FAIL", module, text, remedy)
      return
  yield Finding("ok", "imports", "mesh_tensorflow, seqio and t5, patched")


def devices() -> Iterator[Finding]:
  """Lists GPUs and TPUs; warns about a GPU that TensorFlow cannot see."""
  import tensorflow as tf
  gpus = tf.config.list_physical_devices("GPU")
  present = glob.glob("/dev/nvidia[0-9]*")
  tpus = [f"{name}={os.environ[name]}" for name in ("TPU_NAME", "TPU_WORKER_ID")
          if os.environ.get(name)] + glob.glob("/dev/accel*")
  for gpu in gpus:
    details = tf.config.experimental.get_device_details(gpu)
    yield Finding("ok", "gpu", f"{details.get('device_name')} as {gpu.name}")
  if present and not gpus:
    yield Finding(
        "warn", "gpu", f"TensorFlow does not see {some(present)}",
        'pip install "tensorflow[and-cuda]==2.15.1"; unset '
        "CUDA_VISIBLE_DEVICES if it is set")
  if tpus:
    yield Finding("ok", "tpu", f"{some(tpus)}; runs use it when given --tpu")
  if not gpus and not present and not tpus:
    yield Finding("ok", "devices", "CPU only")


def mesh() -> Iterator[Finding]:
  """Checks that a product split over 2 x 2 processors equals numpy's."""
  import mesh_tensorflow as mtf
  import numpy as np
  import tensorflow.compat.v1 as tf
  rng = np.random.default_rng(0)
  left, right = rng.normal(size=[4, 6]), rng.normal(size=[6, 8])
  rows, inner, columns = (
      mtf.Dimension(*d) for d in (("rows", 4), ("inner", 6), ("columns", 8)))
  with tf.Graph().as_default():
    mtf_mesh = mtf.Mesh(mtf.Graph(), "doctor")
    x = mtf.import_tf_tensor(mtf_mesh, left, [rows, inner])
    y = mtf.import_tf_tensor(mtf_mesh, right, [inner, columns])
    impl = mtf.placement_mesh_impl.PlacementMeshImpl(
        mtf.convert_to_shape("a:2;b:2"),
        mtf.convert_to_layout_rules("rows:a;inner:b"), [""] * 4)
    product = mtf.einsum([x, y], [rows, columns])
    lowering = mtf.Lowering(mtf_mesh.graph, {mtf_mesh: impl})
    config = tf.ConfigProto(
        gpu_options=tf.GPUOptions(allow_growth=True))
    with tf.Session(config=config) as session:
      found = session.run(lowering.export_to_tf_tensor(product))
  error = np.abs(found - left @ right).max()
  if error < 1e-5:
    yield Finding("ok", "mesh", "2 x 2 processors multiply as numpy does")
  else:
    yield Finding("FAIL", "mesh", f"2 x 2 processors are off by {error:.2g}",
                  INSTALL)


def tasks() -> Iterator[Finding]:
  """Checks that the bundled tasks are registered and one gives an example."""
  if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
  import seqio
  importlib.import_module("tasks")
  for name in TASKS:
    if name not in seqio.TaskRegistry.names():
      yield Finding("FAIL", "tasks", f"{name} is not registered",
                    "git checkout -- tasks")
      return
  dataset = seqio.TaskRegistry.get(TASKS[-1]).get_dataset(
      sequence_length={"inputs": 64, "targets": 32}, split="train",
      shuffle=False)
  example = next(dataset.as_numpy_iterator())
  yield Finding("ok", "tasks", f"{TASKS[-1]} gives examples of "
                f"{len(example['inputs'])} and {len(example['targets'])} ids")


def vocabularies() -> Iterator[Finding]:
  """Checks that each bundled vocabulary loads, and decodes what it encodes."""
  import seqio
  files = sorted((ROOT / "tasks" / "data").glob("*.model"))
  if not files:
    yield Finding("FAIL", "vocabularies", "none in tasks/data",
                  "git checkout -- tasks/data")
  text = "the sea and the sky"
  sizes = []
  for file in files:
    vocabulary = seqio.SentencePieceVocabulary(str(file), extra_ids=100)
    try:
      problem = (None if vocabulary.decode(vocabulary.encode(text)) == text
                 else f"garbles {text!r}")
    except Exception as error:
      problem = _short(error)
    if problem:
      yield Finding("FAIL", "vocabularies", f"{file.name}: {problem}",
                    f"git checkout -- tasks/data/{file.name}")
    else:
      sizes.append(f"{file.stem} {vocabulary.vocab_size}")
  if sizes:
    yield Finding("ok", "vocabularies", ", ".join(sizes))


MACHINE: tuple[Check, ...] = (
    python, packages, owners, cpu, memory, disk, cache)
# These checks need the imports that `upstream` checks.
RUN: tuple[Check, ...] = (devices, mesh, tasks, vocabularies)


def _short(error: Exception) -> str:
  """Joins an error's first and last line, which say most in TensorFlow's."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  ends = lines if len(lines) < 3 else [lines[0], "...", lines[-1]]
  return f"{type(error).__name__}: {' '.join(ends)}"


def findings_of(check: Check) -> Iterator[Finding]:
  """Runs a check, and turns an exception into a finding."""
  try:
    yield from check()
  except Exception as error:
    yield Finding("FAIL", check.__name__, _short(error),
                  f"{INSTALL}, or git status if tasks/ was changed")


def examine() -> Iterator[Finding]:
  """Runs the checks; skips those of a run if the imports fail."""
  for check in MACHINE:
    yield from findings_of(check)
  failed = False
  for finding in findings_of(upstream):
    failed = failed or finding.level == "FAIL"
    yield finding
  if failed:
    left_out = ", ".join(check.__name__ for check in RUN)
    yield Finding("warn", "doctor", f"not examined: {left_out}",
                  "fix the imports first")
    return
  for check in RUN:
    yield from findings_of(check)


def main() -> int:
  """Prints the findings and a verdict.

  Returns:
    1 if a run would fail, else 0.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  warnings.simplefilter("ignore")
  logging.getLogger("absl").setLevel(logging.ERROR)
  levels = collections.Counter()
  for finding in examine():
    levels[finding.level] += 1
    print(finding, flush=True)
  if levels["FAIL"]:
    print(f"doctor: {levels['FAIL']} findings stop a run.")
    return 1
  print(f"doctor: ready, with {levels['warn']} warnings.")
  return 0


if __name__ == "__main__":
  sys.exit(main())
