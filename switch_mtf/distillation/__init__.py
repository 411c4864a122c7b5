"""A student that learns from a teacher: loss, start, cached logits, report."""
