"""Distillation: loss, initial weights, cached logits and report."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
