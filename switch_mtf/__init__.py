"""Switch Transformers on Mesh-TensorFlow, trained through T5."""

import sys

# First of all, since it makes upstream importable. Only `python -m
# switch_mtf.doctor` imports it later, so as to report what it raises.
if "switch_mtf.doctor" not in getattr(sys, "orig_argv", ()):
  from switch_mtf import compat  # noqa: F401
