"""The record of a suite as a file: whole at any moment, whatever ends the run that writes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Measured(Protocol):
    """A record of any suite."""

    def to_json(self) -> dict[str, Any]: ...


def write_record(record: Measured, path: Path) -> None:
    """Writes it whole or not at all."""
    making = path.with_name(f"{path.name}.making")
    making.write_text(json.dumps(record.to_json(), indent=1) + "\n")
    os.replace(making, path)
