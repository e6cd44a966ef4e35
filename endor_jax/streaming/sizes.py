"""Sizes in bytes as people write them: "8GiB", "8GB", "300MiB", 1024."""

from __future__ import annotations

import re
from decimal import Decimal

from endor_jax.errors import OptionError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGT")}
_UNITS |= {f"{prefix}B": 1000 ** (i + 1) for i, prefix in enumerate("KMGT")}


def parse_size(size: str | int) -> int:
    """Bytes of "8GiB" (2^30 each), "8GB" (10^9 each), "4096" or an int. Raises OptionError."""
    if isinstance(size, int) and size >= 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if not match or match[2].lower() not in units:
        raise OptionError(
            "size", got=repr(size), expected="a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB",
            fix="write for example 8GiB",
        )  # fmt: skip
    return int(Decimal(match[1]) * units[match[2].lower()])


def format_size(size_bytes: int) -> str:
    """A size with at most four digits and a binary unit: "1.25 GiB"."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
