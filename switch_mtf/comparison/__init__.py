"""Several runs side by side, and the report that compares them."""

from switch_mtf import upstream  # noqa: F401  (before mesh_tensorflow)
