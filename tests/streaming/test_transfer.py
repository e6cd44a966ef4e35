"""Every way gives the same bytes; what a way takes them from is where it says."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.streaming import transfer
from endor_jax.streaming.transfer import Way, keep, put, shares_memory


def filled(size_bytes: int, seed: int = 0) -> np.ndarray:
    buffer = aligned_buffer(size_bytes)
    buffer[:] = np.frombuffer(np.random.default_rng(seed).bytes(size_bytes), np.uint8)
    return buffer


@pytest.fixture(params=[0, 2])
def device(request: pytest.FixtureRequest) -> jax.Device:
    return jax.local_devices()[request.param]


@pytest.mark.parametrize("way", ["shared", "pageable", "registered", "pinned_host"])
def test_a_part_in_the_ring_arrives_as_it_is(device: jax.Device, way: Way) -> None:
    slot = filled(3 * 4096)
    words = put(slot, 2 * 4096, device, way=way)
    assert (words.shape, words.dtype, words.devices()) == ((2048,), np.uint32, {device})
    assert words.sharding.memory_kind == "device"
    assert np.asarray(words).tobytes() == slot[: 2 * 4096].tobytes()


@pytest.mark.parametrize("way", ["shared", "pageable", "pinned_host"])
def test_kept_parts_arrive_as_they_are_and_as_often_as_wanted(device: jax.Device, way: Way) -> None:
    buffers = [filled(4096 * (i + 1), seed=i) for i in range(3)]
    kept = keep(buffers, [device] * len(buffers), way=way)
    for _ in range(2):
        for source, buffer in zip(kept.sources, buffers, strict=True):
            words = put(source, buffer.nbytes, device, way=way)
            assert words.sharding.memory_kind == "device"
            assert np.asarray(words).tobytes() == buffer.tobytes()
    kept.close()


def test_pinned_host_parts_are_in_that_memory(device: jax.Device) -> None:
    (source,) = keep([filled(4096)], [device], way="pinned_host").sources
    assert isinstance(source, jax.Array)
    assert (source.sharding.memory_kind, source.devices()) == ("pinned_host", {device})


def test_other_ways_keep_the_very_buffers(device: jax.Device) -> None:
    buffer = filled(4096)
    for way in ("shared", "pageable"):
        assert keep([buffer], [device], way=way).sources[0] is buffer


def test_a_kept_array_is_moved_whole(device: jax.Device) -> None:
    (source,) = keep([filled(8192)], [device], way="pinned_host").sources
    with pytest.raises(ValueError, match="8192 bytes are kept of a part of 4096"):
        put(source, 4096, device)


def test_a_device_without_pinned_host_memory_says_so(
    device: jax.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "memory_kinds", lambda device: ("device", "unpinned_host"))
    message = r"device .*: got memories device, unpinned_host, expected pinned_host among them; take another"
    with pytest.raises(UnsupportedError, match=message):
        keep([filled(4096)], [device], way="pinned_host")
    with pytest.raises(UnsupportedError, match=message):
        put(filled(4096), 4096, device, way="pinned_host")


def test_cpu_shares_memory(device: jax.Device) -> None:
    assert shares_memory(device)


def test_a_step_is_compiled_once_whatever_way_its_words_came(device: jax.Device) -> None:
    buffer, traces = filled(4096), []
    (kept,) = keep([buffer], [device], way="pinned_host").sources

    @jax.jit
    def step(words: jax.Array) -> jax.Array:
        traces.append(words)
        return words ^ words

    for source, way in (
        (buffer, "pageable"),
        (buffer, "registered"),
        (buffer, "pinned_host"),
        (kept, "shared"),
    ):
        step(put(source, 4096, device, way=way))
    assert len(traces) == 1
