"""Choosing a reader by what is at a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from endor_jax.errors import NotFoundError, UnsupportedError
from endor_jax.sources import open_source


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at that path"):
        open_source(str(tmp_path / "absent"))


def test_directory_of_other_things_lists_them(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="nothing in it"):
        open_source(tmp_path)
    for number in range(10):
        (tmp_path / f"pytorch_model-{number}.bin").touch()
    with pytest.raises(UnsupportedError, match=r"pytorch_model-0\.bin, .*-7\.bin, \.\.\.,.*save_pretrained"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.gguf", "magic"), ("model.bin", "another kind"), ("empty.safetensors", "directory")],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(UnsupportedError, match=message):
        open_source(tmp_path / name)
