"""Modules whose import waits until one of their names is read."""

import importlib
import importlib.util
import sys
import types
from importlib.machinery import PathFinder
from typing import Any


class LateModule(types.ModuleType):
  """A stand-in for a module, which it imports when a name is first read.

  An attribute that was set on the stand-in is kept, unless the module has one
  of the same name.
  """

  def __getattr__(self, name: str) -> Any:
    # Python and libraries look for such names in every module.
    if name.startswith("__"):
      raise AttributeError(name)
    return getattr(self.imported(), name)

  def imported(self) -> types.ModuleType:
    """Imports the module and copies its names to the stand-in."""
    name = self.__name__
    parent = sys.modules.get(name.rpartition(".")[0])
    if isinstance(parent, LateModule):
      # Python runs a package before its modules.
      parent.imported()
    if sys.modules.get(name) is self:
      del sys.modules[name]
    module = importlib.import_module(name)
    self.__dict__.update(vars(module))
    return module


def import_when_used(name: str) -> LateModule | None:
  """Makes `import name` wait until a name of the module is read.

  Args:
    name: full name of a module. The packages that contain it are imported now,
      unless their import waits as well.

  Returns:
    The stand-in, which is now in `sys.modules`. None, with nothing replaced, if
    the module has been imported already or is not installed.
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
