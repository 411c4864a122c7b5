"""Checkpoints for other code to read."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
