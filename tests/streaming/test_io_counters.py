"""The counters against the kernel's, in processes of their own: bytes read from the disk, and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import endor_jax as endor

LAYERS, LAYER_BYTES = 24, 6 * 2**20
PLENTY = 2**40

SCRIPT = """
import json, os, re, sys
import jax, jax.numpy as jnp
import endor_jax as endor
import endor_jax.streaming.api

path, device, host = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def kernel(file, key):
    return int(re.search(rf"^{key}:\\s+(\\d+)", open(f"/proc/self/{file}").read(), re.MULTILINE)[1])

def layer(params, x, state):
    return x + params["w"][:2].astype(jnp.float32).sum(), state

jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(3)))
with endor.open(path, reader="preadv") as checkpoint:
    checkpoint.reader_choice  # how many of its reads are in flight is measured, which reads
for directory, _, names in os.walk(path):
    for name in names:
        file = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # what measuring took is no part of it
disk, memory = kernel("io", "read_bytes"), 1024 * kernel("status", "VmRSS")
budgets = {"device_memory": device, "host_memory": host}
with endor.stream(layer, path, **budgets, reader="preadv") as run:
    x, _ = run(jnp.zeros(()))
    disk = kernel("io", "read_bytes") - disk
    first = run.bytes_read
    for _ in range(4):
        run(jnp.zeros(()))
    print(json.dumps({
        "disk_bytes": disk,
        "bytes_read": first,
        "peak_bytes": 1024 * kernel("status", "VmHWM") - memory,
        "planned_bytes": run.plan.device_bytes + run.plan.host_bytes,
        "streamed": len(run.plan.streamed),
        "x": float(x),
    }))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 MiB that nothing compresses, synced, on a file system that counts what it reads."""
    directory = tmp_path_factory.mktemp("io")
    if file_system(directory) in ("tmpfs", "overlay", "ramfs"):
        directory = Path.home() / ".cache" / "endor_jax" / f"tests-{os.getpid()}"
    if not sys.platform.startswith("linux") or file_system(directory) in ("tmpfs", "overlay", "ramfs"):
        pytest.skip(f"{directory} is not on a disk that /proc/self/io counts")
    random = np.random.default_rng(0)
    shape = (LAYER_BYTES // 4096, 4096)
    endor.save(
        directory / "x", ({"w": random.integers(-128, 128, shape, dtype=np.int8)} for _ in range(LAYERS))
    )
    return directory / "x"


def file_system(directory: Path) -> str:
    """Type of the file system that holds a directory, from the longest mount point above it."""
    directory = directory.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [(point, kind) for point, kind in mounts if directory.is_relative_to(point)]
    return max(found, key=lambda mount: len(mount[0]))[1]


def measure(path: Path, device: int, host: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(device), str(host)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernel_agrees(path: Path) -> None:
    stored = endor.open(path).manifest.stored_bytes
    streamed = measure(path, LAYER_BYTES + 2**20, 5 * LAYER_BYTES + 2**20)
    resident = measure(path, PLENTY, 0)
    assert streamed["streamed"] == LAYERS
    assert resident["streamed"] == 0
    assert streamed["x"] == resident["x"]
    for found in (streamed, resident):
        assert found["bytes_read"] == stored
        assert found["disk_bytes"] == pytest.approx(stored, rel=0.05)
    # Peaks: what the plans differ by is what the processes differ by, and neither is far above its plan,
    # which knows nothing of compiled code and of the pages that two readers map.
    planned = resident["planned_bytes"] - streamed["planned_bytes"]
    assert planned > 90 * 2**20
    assert resident["peak_bytes"] - streamed["peak_bytes"] > 0.6 * planned
    for found in (streamed, resident):
        assert found["peak_bytes"] < found["planned_bytes"] + 40 * 2**20
