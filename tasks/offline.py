"""The switch that keeps a run off the network: `offline.value = True`."""

import gin


@gin.configurable("offline", module="tasks")
def is_offline(value: bool = False) -> bool:
  """Returns whether the run must not use the network.

  Args:
    value: if True, a data set or vocabulary that is not on this machine is an
      error. The message names the missing path and how to provide the data.
  """
  return value


def is_remote(path: str) -> bool:
  """Returns whether a path is on another machine, such as gs://bucket/file."""
  return "://" in path
