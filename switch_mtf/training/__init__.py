"""A training run: model_fn, phases, hooks, metrics, warm start, guards."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
