"""The switch that keeps a run from the network: `offline.value = True`."""

import gin


@gin.configurable("offline", module="tasks")
def is_offline(value: bool = False) -> bool:
  """Says whether the network must not be touched.

  Args:
    value: if True, a data set or vocabulary that is not on this machine is an
      error, which says where it was looked for and how to bring it here.
  """
  return value


def is_remote(path: str) -> bool:
  """Says whether a path is on another machine, as gs://bucket/file is."""
  return "://" in path
