"""A student that learns from a teacher: loss, start, cached logits, report."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
