"""docs/embedding.md: its Python runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "embedding.md").read_text()


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 9
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a user has them
        exec(compile("\n".join(blocks), "embedding.md", "exec"), {})


def test_the_examples_that_it_names_exist() -> None:
    for name in re.findall(r"`(?:examples/)?(\w+\.py)`", TEXT):
        assert (ROOT / "examples" / name).exists(), name
