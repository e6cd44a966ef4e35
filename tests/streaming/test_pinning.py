"""Pinning through a libcudart that keeps a log: signatures, order, errors, and that nothing stays pinned."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from endor_jax.errors import StreamError, UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.streaming.pinning import pin
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.transfer import keep, pin_for, put
from tests.streaming.fake_cudart import FakeCuda, compile_fake_cudart


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake_cudart(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda(library: Path) -> FakeCuda:
    return FakeCuda(library)


def test_every_buffer_is_registered_whole_and_portable(cuda: FakeCuda) -> None:
    buffers = [
        aligned_buffer(10_000),
        aligned_buffer(2**32 + 4096),
    ]  # a size that no int holds; never touched
    pinned = pin(buffers, runtime=cuda.runtime)
    assert [(call.pointer, call.size, call.number) for call in cuda.of("cudaHostRegister")] == [
        (buffer.ctypes.data, buffer.nbytes, 1) for buffer in buffers
    ]
    assert pinned.size_bytes == 10_000 + 2**32 + 4096
    pinned.close()


def test_closing_unregisters_last_first_and_once(cuda: FakeCuda) -> None:
    buffers = [aligned_buffer(4096) for _ in range(3)]
    pinned = pin(buffers, runtime=cuda.runtime)
    pinned.close()
    pinned.close()
    unregistered = [call.pointer for call in cuda.of("cudaHostUnregister")]
    assert unregistered == [buffer.ctypes.data for buffer in reversed(buffers)]
    assert pinned.size_bytes == 0


def test_what_nobody_closed_is_unregistered_when_it_is_dropped(cuda: FakeCuda) -> None:
    pinned = pin([aligned_buffer(4096)], runtime=cuda.runtime)
    gc.collect()
    assert not cuda.of("cudaHostUnregister")
    del pinned
    gc.collect()
    assert len(cuda.of("cudaHostUnregister")) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_memory_stays_mapped_while_it_is_pinned(cuda: FakeCuda) -> None:
    pinned = pin([aligned_buffer(64 * 4096)], runtime=cuda.runtime)
    (call,) = cuda.of("cudaHostRegister")
    assert is_mapped(call.pointer)
    pinned.close()
    gc.collect()
    assert not is_mapped(call.pointer)


def is_mapped(address: int) -> bool:
    ranges = re.findall(r"^([0-9a-f]+)-([0-9a-f]+)", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


def test_all_or_nothing_is_pinned(cuda: FakeCuda) -> None:
    cuda.fail("cudaHostRegister", code=2, after=2)
    with pytest.raises(UnsupportedError) as caught:
        pin([aligned_buffer(4096) for _ in range(3)], ordinal=1, runtime=cuda.runtime)
    assert str(caught.value) == (
        "pinning 4,096 bytes of host memory after 8,192: got cudaErrorMemoryAllocation (out of memory), "
        "expected room for them: pinned pages cannot be swapped out; lower host_memory (--host-memory)"
    )
    assert len(cuda.of("cudaHostUnregister")) == 2
    assert cuda.calls[-1].name == "cudaSetDevice"  # the thread's device is its old one
    assert len(cuda.of("cudaGetLastError")) == 1  # and no error is left for other users of the library


def test_a_buffer_that_cannot_be_unpinned_is_reported_after_the_others(cuda: FakeCuda) -> None:
    pinned = pin([aligned_buffer(4096) for _ in range(3)], runtime=cuda.runtime)
    cuda.fail("cudaHostUnregister", code=713, after=1)
    with pytest.raises(
        StreamError, match=r"unpinning host memory: got cudaErrorOther \(something else\); cuda"
    ):
        pinned.close()
    assert len(cuda.of("cudaHostUnregister")) == 3
    pinned.close()


def test_empty_buffers_need_no_pinning(cuda: FakeCuda) -> None:
    pin([aligned_buffer(0)], runtime=cuda.runtime).close()
    assert not cuda.of("cudaHostRegister")


def test_only_whole_pages_are_pinned(cuda: FakeCuda) -> None:
    with pytest.raises(ValueError, match="page-aligned"):
        pin([aligned_buffer(2 * mmap.PAGESIZE)[64:]], runtime=cuda.runtime)
    assert not cuda.calls


def test_the_ring_is_pinned_in_one_piece(cuda: FakeCuda) -> None:
    ring = Ring(5, 6000)
    pinned = pin_for(jax.local_devices()[0], ring.memory, runtime=cuda.runtime)
    (call,) = cuda.of("cudaHostRegister")
    slots = [ring.acquire() for _ in range(5)]
    for slot in slots:
        assert call.pointer <= slot.ctypes.data
        assert slot.ctypes.data + slot.nbytes <= call.pointer + call.size
    pinned.close()


def test_registered_parts_are_kept_pinned_until_closed(cuda: FakeCuda) -> None:
    device, buffers = jax.local_devices()[0], [aligned_buffer(8192), aligned_buffer(4096)]
    for i, buffer in enumerate(buffers):
        buffer[:] = np.arange(buffer.nbytes) % (251 - i)
    kept = keep(buffers, [device] * len(buffers), way="registered", runtime=cuda.runtime)
    assert len(cuda.of("cudaHostRegister")) == 2
    for source, buffer in zip(kept.sources, buffers, strict=True):
        words = put(source, buffer.nbytes, device, way="registered")
        assert np.asarray(words).tobytes() == buffer.tobytes()
    assert not cuda.of("cudaHostUnregister")
    kept.close()
    kept.close()
    assert len(cuda.of("cudaHostUnregister")) == 2
