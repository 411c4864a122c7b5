"""Says what a mistyped task could have been."""

import difflib

import seqio


def nearest_names(name: str, count: int = 3) -> list[str]:
  """Returns the registered tasks and mixtures that look most like `name`."""
  return difflib.get_close_matches(name, _registered(), n=count, cutoff=0.0)


def check_registered(name: str) -> None:
  """Refuses a name that is no registered task or mixture.

  Raises:
    ValueError: naming the nearest ones.
  """
  if name in _registered():
    return
  raise ValueError(
      f"tasks: {name!r} must be a registered seqio task or mixture, with "
      f"mixture_or_task_name={name!r}; nearest: "
      f"{', '.join(nearest_names(name))}. Set "
      "mesh_train_dataset_fn.mixture_or_task_name (in our gin files: the macro "
      "MIXTURE_NAME) to one of them, or name the module that registers it with "
      "--module_import.")


def _registered() -> list[str]:
  return [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
