"""Modules that are imported when something of them is first used."""

import importlib
import importlib.util
import sys
import types
from importlib.machinery import PathFinder
from typing import Any


class LateModule(types.ModuleType):
  """Stands for a module until something of it is read, then imports it.

  Attributes that were set before that are kept where the module has none of
  their name.
  """

  def __getattr__(self, name: str) -> Any:
    # Python and others look for such names in every module.
    if name.startswith("__"):
      raise AttributeError(name)
    return getattr(self.imported(), name)

  def imported(self) -> types.ModuleType:
    """Imports the module, whose names are then those of this one, too."""
    name = self.__name__
    parent = sys.modules.get(name.rpartition(".")[0])
    if isinstance(parent, LateModule):
      # As Python does; else what the parent imports of this would come first.
      parent.imported()
    if sys.modules.get(name) is self:
      del sys.modules[name]
    module = importlib.import_module(name)
    self.__dict__.update(vars(module))
    return module


def import_when_used(name: str) -> LateModule | None:
  """Makes `import name` wait until something of the module is read.

  Args:
    name: of a module, with those that it is in. These are imported now, unless
      they are late themselves.

  Returns:
    What stands for it in `sys.modules`; None, and nothing is changed, if it has
    been imported or is not installed.
  """
  if name in sys.modules:
    return None
  parent, _, last = name.rpartition(".")
  try:
    path = importlib.import_module(parent).__path__ if parent else None
  except ImportError:
    return None
  spec = PathFinder.find_spec(name, path)
  if spec is None:
    return None
  module = LateModule(name)
  module.__spec__ = spec
  module.__file__ = spec.origin
  if spec.submodule_search_locations is not None:
    module.__path__ = spec.submodule_search_locations
  sys.modules[name] = module
  if parent:
    setattr(sys.modules[parent], last, module)
  return module
