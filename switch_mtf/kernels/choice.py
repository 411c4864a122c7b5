"""Chooses between a kernel of ours and the part of T5 that it replaces."""

import functools
import inspect
from collections.abc import Callable

import mesh_tensorflow as mtf

from switch_mtf.mesh import on_tpu
from switch_mtf.upstream import FAST


def replaces_upstream(mesh: mtf.Mesh) -> bool:
  """Returns whether kernels of ours run on a mesh.

  They do on CPU and GPU, unless SWITCH_MTF_FAST=0.
  """
  return FAST and not on_tpu(mesh)


def else_upstream(upstream: Callable, can: Callable[..., bool]) -> Callable:
  """Decorates a kernel that leaves to upstream what it cannot compute.

  Args:
    upstream: the function that the kernel replaces; takes the same arguments.
    can: returns whether the kernel can compute a call. It gets all arguments of
      the call by name, defaults included.
  """
  def decorate(kernel: Callable) -> Callable:
    signature = inspect.signature(kernel)

    @functools.wraps(kernel)
    def choose(*args, **kwargs):
      call = signature.bind(*args, **kwargs)
      call.apply_defaults()
      chosen = kernel if can(**call.arguments) else choose.upstream
      return chosen(*args, **kwargs)

    choose.upstream = upstream
    return choose

  return decorate
