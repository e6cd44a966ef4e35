"""Figures of models that are broken, for JSON: it has neither NaN nor infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite, also inside mappings, lists and tuples."""
    if isinstance(value, Mapping):
        return {name: finite(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
