"""Every way to a CUDA device: equal bytes, slots that may be written again, and its rate (printed)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from layer_stacks import save_in_parts, stack

import endor_jax as endor
from endor_jax.errors import UnsupportedError
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.memory import aligned_buffer
from endor_jax.streaming.budget import free_device_bytes
from endor_jax.streaming.cuda_runtime import find_runtime, unclaimed_bytes
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.link import choose, choose_link
from endor_jax.streaming.link_rates import measure_link, refusals
from endor_jax.streaming.memory_pools import free_in_pool
from endor_jax.streaming.pinning import pin
from endor_jax.streaming.plan import FixedCosts, Plan, Tier
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.transfer import WAYS, Way, keep, pin_for, put

pytestmark = pytest.mark.gpu

PART_BYTES = 48 * 2**20 + 4096


@pytest.fixture
def gpu() -> jax.Device:
    return jax.devices("gpu")[0]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, gpu: jax.Device) -> Way:
    refused = refusals(gpu)
    if request.param in refused:
        pytest.skip(refused[request.param])
    return request.param


@pytest.fixture
def ring(gpu: jax.Device, way: Way) -> Iterator[Ring]:
    """Three slots, pinned where the way is to take them from pinned memory."""
    made = Ring(3, PART_BYTES)
    pinned = pin_for(gpu, made.memory) if way == "registered" else None
    yield made
    if pinned is not None:
        pinned.close()


def random_bytes(seed: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(PART_BYTES), np.uint8)


def test_a_slot_may_be_written_again_once_its_transfer_is_done(gpu: jax.Device, way: Way, ring: Ring) -> None:
    contents = [random_bytes(seed) for seed in range(9)]
    arrays = []
    for i in range(0, len(contents), 3):  # three transfers in flight, then poison in all slots
        slots = [ring.acquire() for _ in range(3)]
        for slot, content in zip(slots, contents[i : i + 3], strict=True):
            slot[:] = content
        moved = [put(slot, PART_BYTES, gpu, way=way) for slot in slots]
        jax.block_until_ready(moved)
        for slot in slots:
            slot[:] = 0xFF
            ring.release(slot)
        arrays += moved
    for array, content in zip(arrays, contents, strict=True):
        assert array.sharding.memory_kind == "device"
        assert np.asarray(array).tobytes() == content.tobytes()


def test_kept_parts_arrive_as_they_are_and_as_often_as_wanted(gpu: jax.Device, way: Way) -> None:
    buffers = [aligned_buffer(PART_BYTES) for _ in range(2)]
    for seed, buffer in enumerate(buffers):
        buffer[:] = random_bytes(seed)
    expected = [buffer.tobytes() for buffer in buffers]
    kept = keep(buffers, [gpu] * len(buffers), way=way)
    if way == "pinned_host":
        for buffer in buffers:
            buffer[:] = 0xFF  # what is kept is a copy
    for _ in range(3):
        arrays = [put(source, PART_BYTES, gpu, way=way) for source in kept.sources]
        for array, content in zip(arrays, expected, strict=True):
            assert np.asarray(array).tobytes() == content
    kept.close()


def test_a_page_is_not_pinned_twice_and_not_after_closing(gpu: jax.Device) -> None:
    if "registered" in refusals(gpu):
        pytest.skip("nothing can be pinned here")
    buffer = aligned_buffer(2**20)
    pinned = pin([buffer])
    with pytest.raises(UnsupportedError, match="cudaErrorHostMemoryAlreadyRegistered"):
        pin([buffer])
    pinned.close()
    pin([buffer]).close()


def test_the_chosen_way_is_the_fastest_measured(gpu: jax.Device) -> None:
    measured = measure_link(gpu)
    chosen = choose(measured)
    record = {
        "device": gpu.device_kind,
        "jax": jax.__version__,
        "why": chosen.why,
        "bytes_per_second": {way: dataclasses.asdict(each) for way, each in measured.rates.items()},
        "refused": measured.refused,
        "cudaMemcpy_bytes_per_second": measured.limit,
    }
    print(json.dumps(record, indent=1))
    assert choose_link(gpu, anew=True).ring in measured.rates
    assert chosen.kept_bytes_per_second >= 0.95 * max(each.kept for each in measured.rates.values())


def test_what_the_pool_can_give_is_what_it_has_not_given(gpu: jax.Device) -> None:
    stats = gpu.memory_stats()
    unclaimed = unclaimed_bytes(find_runtime(), gpu.local_hardware_id)
    print({name: stats.get(name) for name in ("bytes_limit", "bytes_in_use", "pool_bytes")}, unclaimed)
    assert free_in_pool(stats, unclaimed_bytes=unclaimed) <= free_device_bytes(gpu)
    before = free_in_pool(stats)
    held = jax.block_until_ready(jax.device_put(random_bytes(0), gpu))
    assert before - free_in_pool(gpu.memory_stats()) >= held.nbytes


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stream_gives_the_same_bytes_by_every_way(
    gpu: jax.Device, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """From all tiers, with slots that are poisoned as soon as the executor gives them back."""
    release = Ring.release

    def poison(ring: Ring, slot: np.ndarray) -> None:
        slot[:] = 0xFF
        release(ring, slot)

    monkeypatch.setattr(Ring, "release", poison)
    layers = stack(6)
    manifest = save_in_parts(tmp_path / "x.endor", layers, 2)
    records = [Streamable(r.name, r.parts, manifest.layout(r)) for r in manifest.records]
    tiers: tuple[Tier, ...] = ("disk", "host", "disk", "device", "disk", "host")
    demands = tuple(record.demand for record in records)
    link = choose_link(gpu, way=way)
    plan = Plan(demands, tiers, FixedCosts(), depth, 2**40, 2**40, staged=link.staged)
    with endor.open(tmp_path / "x.endor") as checkpoint:
        run = Executor(checkpoint, records, plan=plan, devices=one_device(gpu), link=link)

        def step(index: int, record: Record) -> object:
            for name, array in layers[index].items():
                assert decode(record[name]).tobytes() == array.tobytes()
            return record.words

        for _ in range(4):
            run.run(step)
        run.close()
