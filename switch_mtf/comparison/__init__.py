"""Comparisons: several runs side by side, and their report."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
