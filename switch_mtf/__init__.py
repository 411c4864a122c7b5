"""Switch Transformers on Mesh-TensorFlow, trained through T5."""

from switch_mtf import compat  # noqa: F401  (first: it makes upstream importable)
