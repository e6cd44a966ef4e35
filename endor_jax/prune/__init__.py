"""Which weights to keep: pure functions on arrays, no model knowledge."""
