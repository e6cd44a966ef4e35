"""Checkpoints in object stores: read through a cache on a local disk, and written."""
