"""Figures of models that are broken, for JSON: it has neither NaN nor infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for every number that is not finite, also in mappings inside."""
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
