"""Free memory under a control group (cgroup v2), read from directories that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from endor_jax.memory import free_host_bytes

MIB = 2**20


def group(path: Path, *, limit: str, current: int, inactive: int = 0, active: int = 0) -> Path:
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{current}\n")
    stat = f"anon 77\nfile 999\nshmem 5\ninactive_file {inactive}\nactive_file {active}\nslab 3\n"
    (path / "memory.stat").write_text(stat)
    return path


@pytest.mark.parametrize(
    ("current", "inactive", "active", "free"),
    [
        (6 * MIB, 0, 0, 4 * MIB),
        (6 * MIB, 3 * MIB, 2 * MIB, 9 * MIB),
        (10 * MIB, 0, 0, 0),
        (11 * MIB, 0, 0, 0),
    ],
)
def test_the_page_cache_of_a_group_is_free(tmp_path: Path, current, inactive, active, free) -> None:
    place = group(tmp_path, limit=str(10 * MIB), current=current, inactive=inactive, active=active)
    assert free_host_bytes(place) == free


def test_a_group_never_gives_more_than_the_machine_has(tmp_path: Path) -> None:
    assert 0 < free_host_bytes(group(tmp_path, limit=str(2**60), current=1)) < 2**50


def test_without_a_limit_or_a_group_the_machine_counts(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path) > 0
    assert free_host_bytes(group(tmp_path, limit="max", current=2**60)) > 0
