"""GPUDirect Storage on a machine that has it: equal bytes, and the device record that says so.

The files lie in `$ENDOR_GDS_DIRECTORY`, which has to be on a file system that supports it (ext4 or XFS on
NVMe, say), by default where pytest puts its own. To be run with `KVIKIO_COMPAT_MODE=OFF` and
`CUFILE_ALLOW_COMPAT_MODE=false`; without GPUDirect Storage it skips and says why.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from endor_jax.errors import EndorError
from endor_jax.store.gds import RECORD, check_active, gds_state, read_to_device
from endor_jax.store.part import DATA_FILE, write_part

pytestmark = pytest.mark.gpu

LENGTHS = (4, 4096, 20_004, 2**20, 2**20 + 4, 16 * 2**20, 96 * 2**20 + 4092)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    chosen = os.environ.get("ENDOR_GDS_DIRECTORY")
    if chosen is None:
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(dir=chosen, prefix="endor-gds-"))
    yield made
    shutil.rmtree(made)


def test_bytes_are_equal_and_the_record_says_so(directory: Path) -> None:
    try:
        state = gds_state()
        check_active(state)
    except EndorError as error:
        pytest.skip(str(error))
    device = jax.devices("gpu")[0]
    for length in LENGTHS:
        data = np.frombuffer(np.random.default_rng(length).bytes(length), np.uint8)
        write_part(directory / str(length), data)
        drop(directory / str(length) / DATA_FILE)
        buffer_bytes = -(-length // 4096) * 4096 + 8192
        for _ in range(2):
            words = read_to_device(directory / str(length), length, buffer_bytes=buffer_bytes, device=device)
            assert np.asarray(words).tobytes() == data.tobytes() + bytes(buffer_bytes - length)
    RECORD.parent.mkdir(exist_ok=True)
    record = {"equal_bytes": True, "device": device.device_kind, "jax": jax.__version__, "lengths": LENGTHS}
    RECORD.write_text(json.dumps(record | dataclasses.asdict(state), indent=1) + "\n")


def drop(path: Path) -> None:
    """Lets go of what the page cache has of a file."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
