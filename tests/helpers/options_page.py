"""docs/options.md as data."""

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re

import gin
from helpers.graphs import ROOT
from mesh_tensorflow.transformer import utils

import switch_mtf.kernels.embedding
import switch_mtf.kernels.norm
import switch_mtf.layers
import switch_mtf.training.model_fn  # noqa: F401  (registers `progress`)

for _module in pkgutil.iter_modules(switch_mtf.layers.__path__):
  importlib.import_module(f"switch_mtf.layers.{_module.name}")

PAGE = (ROOT / "docs/options.md").read_text()
GIN = re.findall(r"```gin\n(.*?)```", PAGE, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)

# All that gin can configure, by its last name; and what is ours.
CONFIGURABLES = {c.name: c.wrapped for _, c in gin.config._REGISTRY.items()}
OURS = {c.name: c.module for _, c in gin.config._REGISTRY.items()
        if c.module.startswith((
            "switch_mtf.layers.", "switch_mtf.kernels.embedding",
            "switch_mtf.kernels.norm"))}

TOKENS = "batch:4,length:4,d_model:6"


def parse(fence):
  """The fence on top of T5's defaults and the model that the page names."""
  gin.parse_config_file(os.path.join(
      os.path.dirname(utils.__file__), "gin", "defaults.gin"))
  gin.parse_config_file("models/bi_v1.gin")
  gin.parse_config(fence)


# The page as data.


@functools.cache
def sections():
  """Title to text, for headings of any depth; a text ends at the next one."""
  _, *parts = re.split(r"^#+ (.*)\n", PROSE, flags=re.MULTILINE)
  return dict(zip(parts[::2], parts[1::2], strict=True))


def table(section, first):
  """Rows of the section's table whose header starts with `first`."""
  rows = [[cell.strip() for cell in line.strip("|").split("|")]
          for line in sections()[section].splitlines() if line.startswith("|")]
  found = []
  for header, line, *_ in zip(rows, rows[1:], strict=False):
    if header[0] == first and set("".join(line)) <= set("-:"):
      assert not found, f"two such tables in {section}"
      start = rows.index(header) + 2
      found = rows[start:]
      end = [i for i, row in enumerate(found) if set("".join(row)) <= set("-:")]
      found = found[:end[0] - 1] if end else found
      assert all(len(row) == len(header) for row in found), section
  return found


def code(cell):
  """What stands in backquotes."""
  return re.findall(r"`([^`]+)`", cell)


def parameters(name):
  """The parameters of a configurable that gin may bind: those with defaults."""
  return {p.name: p.default
          for p in inspect.signature(CONFIGURABLES[name]).parameters.values()
          if p.default is not p.empty}


OPTIONS = {row[0].strip("`"): row[1:]
           for name in sections() for row in table(name, "option")}
