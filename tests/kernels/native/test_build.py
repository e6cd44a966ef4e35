"""The kernels without Python, compiled for this machine with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.kernels.native.building import DAMAGES, NATIVE, SETUP, Driver, build, weak_functions

FOR_ONE_INSTRUCTION_SET = sorted(
    path.stem for path in NATIVE.glob("*.cc") if SETUP["flags_of"](path, "x86_64") != SETUP["FLAGS"]
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    try:
        compiler = SETUP["compiler"]()
    except SETUP["CompileError"] as error:
        pytest.skip(str(error))
    return build(tmp_path_factory.mktemp("driver"), compiler=compiler, machine=platform.machine())


def test_every_result_is_right_and_the_sanitizers_are_silent(driver: Driver, cases: Path) -> None:
    assert " 0 calls refused, on " in driver(cases)


def test_damaged_parts_are_not_read_or_written_outside(driver: Driver, small_cases: Path) -> None:
    assert f" {DAMAGES} damages each, " in driver(small_cases, DAMAGES)


def test_the_driver_notices_a_wrong_result(driver: Driver, small_cases: Path, tmp_path: Path) -> None:
    """The file ends with how far the last product may be off: no product is exact."""
    data = bytearray(small_cases.read_bytes())
    data[-8:] = bytes(8)
    wrong = tmp_path / "wrong"
    wrong.write_bytes(data)
    with pytest.raises(
        AssertionError, match=r"driver: case 161, \w+: product \d+ is .*, expected .* within 0"
    ):
        driver(wrong)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these sources are for x86-64")
@pytest.mark.parametrize("source", FOR_ONE_INSTRUCTION_SET)
def test_no_function_for_newer_processors_is_linked_into_code_for_all(driver: Driver, source: str) -> None:
    """kernels/native/inlined.h says why."""
    assert weak_functions(driver.objects[source]) == []
