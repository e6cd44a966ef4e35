"""Source → prune → encode → store, and back."""
