"""Exports of checkpoints for code outside this project."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
