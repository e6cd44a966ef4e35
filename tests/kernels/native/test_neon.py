"""The kernels compiled for aarch64, run by an emulator under the same sanitizers: NEON and portable code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels.native.building import DAMAGES, Driver, build

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: apt-get install g++-aarch64-linux-gnu qemu-user")
    emulator = [EMULATOR, "-L", LIBRARIES]
    return build(tmp_path_factory.mktemp("neon"), compiler=[COMPILER], machine="aarch64", emulator=emulator)


def test_every_result_is_right_and_the_sanitizers_are_silent(driver: Driver, small_cases: Path) -> None:
    assert driver(small_cases).endswith(" 0 calls refused, on neon scalar\n")


def test_damaged_parts_are_not_read_or_written_outside(driver: Driver, small_cases: Path) -> None:
    """A fifth as often as elsewhere: the emulator is slow."""
    assert driver(small_cases, -(-DAMAGES // 5)).endswith(" on neon scalar\n")
