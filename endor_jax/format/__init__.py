"""What a sparse tensor is, in memory: NumPy and pytree registration only. docs/format.md is the norm."""
