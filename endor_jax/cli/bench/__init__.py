"""`endor bench`: measurements that anyone can repeat; a file per suite has its options and its table."""

from __future__ import annotations

from endor_jax.cli.bench import accelerate, decode, expand, linear, memory, pruning, scaling, stream

SUITES = (memory, expand, linear, decode, accelerate, stream, scaling, pruning)
"""Modules: each is called as its file is, and has a `command`."""
