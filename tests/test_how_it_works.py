"""docs/how-it-works.md: its Python runs, its figures add up, and its picture is what the executor does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import endor_jax as endor
from docs.draw_timeline import PICTURE, draw
from tests.tiny_models import write_tiny

DOCS = Path(__file__).parents[1] / "docs"
HOW = (DOCS / "how-it-works.md").read_text()


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endor.convert(write_tiny(tmp_path / "source", tokenizer=True), tmp_path / "smol.endor")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", HOW, re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "how-it-works.md", "exec"), {})


def test_the_figures_of_its_table_are_those_of_its_bandwidths() -> None:
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) GB \| ([\d.]+) s \| ([\d.]+) s \|", HOW)
    assert len(rows) == 4
    for per_weight, size, disk, link in rows:
        exact = 6.74 * float(per_weight)
        assert (size, disk, link) == (f"{exact:.1f}", f"{exact / 3:.1f}", f"{exact / 20:.2f}")


def test_the_picture_is_what_the_script_draws() -> None:
    assert draw() == PICTURE.read_text(), "run: python docs/draw_timeline.py"
    assert f"]({PICTURE.name})" in HOW


def test_the_files_that_it_names_exist() -> None:
    package = DOCS.parent / "endor_jax"
    for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", HOW):
        assert (package / name).exists() or (DOCS.parent / name).exists(), name
    for line in re.findall(r"`endor_jax/(\w+)/`: ([^|]*)", HOW):
        for module in re.findall(r"`(\w+)`", line[1]):
            assert (package / line[0] / f"{module}.py").exists(), module
