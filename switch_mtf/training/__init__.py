"""The training loop: progress, metrics, guards and the report."""
