"""GPUDirect Storage: refused without a record, never a fallback, and the bytes of the file where it works."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from endor_jax.errors import CorruptCheckpointError, MissingDependencyError, UnsupportedError
from endor_jax.store.direct import check_reader
from endor_jax.store.gds import (
    RECORD,
    GdsState,
    check_active,
    check_record,
    gds_state,
    read_to_device,
)
from endor_jax.store.part import DATA_FILE, write_part
from tests.store import fake_kvikio
from tests.store.fake_kvikio import CompatMode


@pytest.fixture
def kvikio(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_kvikio.install(monkeypatch, mode=CompatMode.OFF, driver=True, may_fall_back=False)


@pytest.fixture
def device() -> jax.Device:
    return jax.local_devices()[1]


@pytest.mark.usefixtures("kvikio")
@pytest.mark.parametrize("length", [4, 4096, 20_004])
def test_a_part_arrives_on_the_device_as_it_is_in_its_file(
    device: jax.Device, tmp_path: Path, length: int
) -> None:
    data = np.frombuffer(np.random.default_rng(length).bytes(length), np.uint8)
    write_part(tmp_path / "part", data)
    words = read_to_device(tmp_path / "part", length, buffer_bytes=24_576, device=device)
    assert (words.shape, words.dtype, words.devices()) == ((6144,), np.uint32, {device})
    assert np.asarray(words).tobytes() == data.tobytes() + bytes(24_576 - length)


@pytest.mark.usefixtures("kvikio")
def test_two_parts_do_not_share_memory(device: jax.Device, tmp_path: Path) -> None:
    parts = [np.full(4096, value, np.uint8) for value in (1, 2)]
    arrays = []
    for i, data in enumerate(parts):
        write_part(tmp_path / str(i), data)
        arrays.append(read_to_device(tmp_path / str(i), 4096, buffer_bytes=4096, device=device))
    for array, data in zip(arrays, parts, strict=True):
        assert np.asarray(array).tobytes() == data.tobytes()


@pytest.mark.usefixtures("kvikio")
def test_a_file_that_is_cut_off_is_corrupt(device: jax.Device, tmp_path: Path) -> None:
    write_part(tmp_path / "part", np.ones(8192, np.uint8))
    (tmp_path / "part" / DATA_FILE).write_bytes(bytes(5000))
    with pytest.raises(CorruptCheckpointError, match=r"got 5,000 bytes in c/0, expected 8,192 and more"):
        read_to_device(tmp_path / "part", 8192, buffer_bytes=8192, device=device)


@pytest.mark.usefixtures("kvikio")
def test_what_kvikio_cannot_read_is_an_os_error(device: jax.Device, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"absent/c/0: Unable to open file"):
        read_to_device(tmp_path / "absent", 4096, buffer_bytes=4096, device=device)


@pytest.mark.parametrize(
    ("mode", "driver", "may_fall_back", "obstacles"),
    [
        (CompatMode.OFF, True, False, ()),
        (CompatMode.AUTO, True, False, ("kvikio's compatibility mode is AUTO",)),
        (CompatMode.ON, True, False, ("kvikio's compatibility mode is ON",)),
        (CompatMode.OFF, False, False, ("the driver nvidia-fs is not loaded",)),
        (CompatMode.OFF, True, True, ("cuFile may fall back to POSIX reads",)),
    ],
)
def test_active_means_that_nothing_falls_back(
    monkeypatch: pytest.MonkeyPatch,
    mode: CompatMode,
    driver: bool,
    may_fall_back: bool,
    obstacles: tuple[str, ...],
) -> None:
    fake_kvikio.install(monkeypatch, mode=mode, driver=driver, may_fall_back=may_fall_back)
    state = gds_state()
    assert (state.kvikio, state.obstacles, state.active) == ("26.10.00", obstacles, not obstacles)
    if not obstacles:
        check_active(state)
        return
    with pytest.raises(UnsupportedError, match=r"KVIKIO_COMPAT_MODE=OFF") as caught:
        check_active(state)
    assert f"reader gds: got {obstacles[0]}, expected GPUDirect Storage" in str(caught.value)


def test_every_obstacle_is_named() -> None:
    with pytest.raises(
        UnsupportedError, match=r"is AUTO; the driver nvidia-fs is not loaded; cuFile may fall"
    ):
        check_active(GdsState("26.10.00", "AUTO", driver=False, may_fall_back=True))


@pytest.mark.parametrize(
    "error", [ImportError("No module"), OSError("libkvikio.so"), RuntimeError("libcufile")]
)
def test_without_kvikio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError, match=rf"got no kvikio \({error}\).*endor_jax\[gds\]"):
        gds_state()


def test_without_a_device_record_it_is_not_offered(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"reader gds: got no device record, expected gds\.json .*'pytest -m gpu tests/store/test_gds_",
    ):
        check_record(tmp_path / "gds.json")
    for unequal in ({}, {"equal_bytes": False}, []):
        (tmp_path / "gds.json").write_text(json.dumps(unequal))
        with pytest.raises(UnsupportedError, match="got a device record without equal bytes"):
            check_record(tmp_path / "gds.json")


def test_its_name_is_refused_with_that_reason_as_long_as_there_is_no_record() -> None:
    with pytest.raises(UnsupportedError, match="got no device record"):
        check_reader("gds")


def test_a_device_record_that_shows_equal_bytes_offers_it(tmp_path: Path) -> None:
    (tmp_path / "gds.json").write_text('{"equal_bytes": true, "device": "NVIDIA H200"}')
    assert check_record(tmp_path / "gds.json")["device"] == "NVIDIA H200"


def test_there_is_no_record_yet() -> None:
    """Once the GPU suite has written one: put `reader="gds"` into the executor, and this test away."""
    assert not RECORD.exists()
