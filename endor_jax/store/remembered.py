"""What was measured on this machine, kept from one process to the next in $XDG_CACHE_HOME/endor_jax.

A file is one JSON object. What cannot be read back is measured again, what cannot be written is not kept:
neither is an error, because nothing but time is lost.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """Where this machine keeps what is worth keeping; perhaps not made yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~/.cache"))
    return root / "endor_jax"


def recall(file: str, key: str) -> Any:
    """What `remember` kept under a key: a JSON value, by whomever it was written; None if there is none."""
    try:
        return _whole(file).get(key)
    except (OSError, ValueError, RecursionError):  # absent or damaged
        return None


def remember(file: str, entries: Mapping[str, Any]) -> None:
    """Keeps JSON values by key, by rename, beside those of other keys."""
    try:
        kept = _whole(file)
    except (OSError, ValueError, RecursionError):
        kept = {}
    _write(file, kept | dict(entries))


def forget(file: str, beginning: str) -> None:
    """Drops what is kept under keys that begin so."""
    try:
        kept = _whole(file)
    except (OSError, ValueError, RecursionError):  # there is nothing to drop
        return
    _write(file, {key: value for key, value in kept.items() if not key.startswith(beginning)})


def _write(file: str, whole: Mapping[str, Any]) -> None:
    path = cache_directory() / file
    written = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as written:
            json.dump(dict(whole), written)
        os.replace(written.name, path)
    except OSError:
        if written is not None:
            Path(written.name).unlink(missing_ok=True)


def _whole(file: str) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, ValueError, RecursionError."""
    whole = json.loads((cache_directory() / file).read_text())
    if not isinstance(whole, dict):
        raise ValueError(f"{file} holds no JSON object")
    return whole
