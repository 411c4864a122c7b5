"""Switch Transformers on Mesh-TensorFlow, trained through T5.

Importing the package costs nothing: a name below, or a module, is loaded when
it is first used, and with it TensorFlow and everything in `upstream/`. Whoever
imports `mesh_tensorflow`, `t5` or `seqio` too imports `switch_mtf.upstream`
before them.
"""

import importlib
import importlib.util
from typing import Any

# Public name -> module.
_HOMES = {
    "EinsumDispatcher": "switch_mtf.layers.dispatch",
    "ExpertChoiceRouter": "switch_mtf.layers.routers",
    "GatherDispatcher": "switch_mtf.layers.dispatch",
    "MoeDims": "switch_mtf.dims",
    "NoTokenLeftBehindRouter": "switch_mtf.layers.routers",
    "Router": "switch_mtf.layers.routing",
    "Routing": "switch_mtf.layers.routing",
    "SwitchFFN": "switch_mtf.layers.switch_ffn",
    "SwitchRouter": "switch_mtf.layers.routing",
    "SwitchSelfAttention": "switch_mtf.layers.switch_attention",
    "Top2Router": "switch_mtf.layers.routers",
}
__all__ = list(_HOMES)  # noqa: PLE0604


def __getattr__(name: str) -> Any:
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  module = f"{__name__}.{name}"
  if name.startswith("_") or importlib.util.find_spec(module) is None:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(module)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOMES})
