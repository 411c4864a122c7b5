"""Several runs side by side, and the report that compares them."""
