"""A search whose conversions and scores take no time: what a try loses is any function of its percent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from endor_jax.conversion.settings import CalibrationText, ConvertSettings
from endor_jax.search import api, run
from endor_jax.search.text import SearchText
from endor_jax.store.journal import JOURNAL_FILE
from endor_jax.store.manifest import MANIFEST_FILE

BLOCKS, LENGTH = 3, 5
SETTINGS = ConvertSettings(prune="magnitude", sparsity=0.5, calibration=CalibrationText(blocks=2))
DENSE_LOSS = 2.0


@dataclass
class Faked:
    """lost: percent -> how much perplexity increases; checked: the same on the text of the check. converted,
    scored: names of directories, as they came. before: called before changes on disk. half: blocks to search
    with."""

    lost: Callable[[int], float]
    checked: Callable[[int], float]
    converted: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    half: int = BLOCKS

    def install(self, patch: pytest.MonkeyPatch) -> Faked:
        patch.setattr(run, "run_conversion", self.convert)
        patch.setattr(run, "block_losses", self.losses)
        patch.setattr(api, "search_text", self.text)
        return self

    def text(self, source: Any, text: CalibrationText, scored_blocks: int) -> SearchText:
        self.half = scored_blocks
        numbers = np.arange(2 * scored_blocks, dtype=np.int32)
        return SearchText(np.repeat(numbers[:, None], LENGTH, axis=1), {"text": text.path, "seed": text.seed})

    def convert(
        self,
        source: Path,
        path: Path,
        *,
        settings: ConvertSettings,
        progress: Callable[..., None],
        announce: Callable[..., None] | None,
    ) -> None:
        """Like the true one it leaves a journal when it is interrupted, and goes on from that."""
        assert not (path / MANIFEST_FILE).exists() or (path / JOURNAL_FILE).exists(), "it was done already"
        percent = 0 if settings.sparsity is None else round(100 * settings.sparsity)
        progress("encoding", 1, 2)
        if announce is not None:
            expected = SimpleNamespace(stored_bytes=100 - percent)
            announce(SimpleNamespace(expected=expected, expected_peak_host_bytes=2**30))
        path.mkdir(parents=True, exist_ok=True)
        (path / JOURNAL_FILE).write_text("half done")
        others = {each.name for each in path.parent.iterdir() if each.is_dir()} - {path.name}
        assert len(others) <= 1, f"more than two checkpoints on disk: {others}"
        self.before()
        (path / MANIFEST_FILE).write_text(json.dumps(percent))
        self.before()
        (path / JOURNAL_FILE).unlink()
        self.converted.append(path.name)

    def losses(self, path: Path, blocks: np.ndarray, *, progress: Callable[[int, int], None]) -> np.ndarray:
        progress(0, len(blocks))
        self.before()
        self.scored.append(path.name)
        percent = json.loads((path / MANIFEST_FILE).read_text())
        result = np.full((len(blocks), LENGTH - 1), DENSE_LOSS, np.float32)
        if percent:
            increases = [self.lost(percent), self.checked(percent)]
            for row, number in enumerate(blocks[:, 0]):
                result[row] += np.log1p(increases[int(number) // self.half])
        return result


def search(source: Path, destination: Path, *, max_increase: float = 0.05, **options: Any) -> api.Search:
    asked = {"settings": SETTINGS, "scored_blocks": BLOCKS} | options
    return api.highest_sparsity(source, destination, max_increase=max_increase, **asked)
