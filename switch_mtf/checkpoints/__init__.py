"""Checkpoints for other code to read."""
