"""Which bytes are where, and when they move; no model knowledge."""
