"""Device operations on a SparseTensor: expand it, multiply by it.

One folder per operation, one file per backend.
"""
