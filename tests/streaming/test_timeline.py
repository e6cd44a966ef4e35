"""The timeline: totals that add up, and spans that tell what the executor did in which order."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacks import save_in_parts, stack

import endor_jax as endor
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.plan import FixedCosts, Plan
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.timeline import Stages, Timeline
from endor_jax.streaming.transfer import shares_memory

DEVICE = jax.local_devices()[0]
COUNT, PASSES, PAUSE = 6, 3, 0.01


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_in_parts(tmp_path / "x.endor", stack(COUNT), 2)
    return endor.open(tmp_path / "x.endor", reader="preadv")


def run(checkpoint: Checkpoint, timeline: Timeline, depth: int = 2) -> Executor:
    """Some passes with everything on disk."""
    manifest = checkpoint.manifest
    records = [Streamable(record.name, record.parts, manifest.layout(record)) for record in manifest.records]
    demands = tuple(record.demand for record in records)
    plan = Plan(demands, ("disk",) * COUNT, FixedCosts(), depth, 2**40, 2**40, shares_memory(DEVICE))
    executor = Executor(checkpoint, records, plan=plan, devices=one_device(DEVICE), timeline=timeline)

    def step(index: int, record: Record) -> Any:
        return jnp.sum(record.words[0][:8])

    for _ in range(PASSES):
        executor.run(step)
    return executor


def test_stages_are_subtracted_one_by_one() -> None:
    before, after = Stages(1, 2.0, 3, 4.0, 5.0, 6.0, 7.0), Stages(2, 4.0, 6, 8.0, 10.0, 12.0, 14.0)
    assert after - before == before
    assert after - Stages() == after


def test_busy_is_the_time_in_which_at_least_one_read_goes_on() -> None:
    timeline = Timeline(keep=True)
    barrier = threading.Barrier(2)

    def read(record: str) -> None:
        with timeline.reading(record, 100):
            barrier.wait(10)
            time.sleep(PAUSE)

    threads = [threading.Thread(target=read, args=(str(i),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = sorted(timeline.spans, key=lambda span: span.start_seconds)
    busy = max(first.end_seconds, second.end_seconds) - first.start_seconds
    assert timeline.stages.read_busy_seconds == pytest.approx(busy)
    assert timeline.stages.read_bytes == 200
    assert {first.lane, second.lane} == {0, 1}


def test_waits_for_slow_reads_are_those_of_the_pass(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Checkpoint.read_part

    def slow(own: Checkpoint, part: Part, *, into: np.ndarray) -> None:
        time.sleep(PAUSE)
        read(own, part, into=into)

    monkeypatch.setattr(Checkpoint, "read_part", slow)
    timeline = Timeline()
    executor = run(checkpoint, timeline)
    stages = executor.stages
    executor.close()
    assert stages.passes == PASSES
    # Two readers, two parts a record: each record takes a pause at least.
    assert stages.read_busy_seconds >= 0.9 * PASSES * COUNT * PAUSE
    assert stages.read_wait_seconds > 0.5 * PASSES * COUNT * PAUSE
    waits = stages.read_wait_seconds + stages.step_wait_seconds + stages.transfer_wait_seconds
    assert waits < stages.pass_seconds
    assert timeline.spans == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_transfer_is_issued_before_the_step_that_many_ahead(checkpoint: Checkpoint, depth: int) -> None:
    timeline = Timeline(keep=True)
    executor = run(checkpoint, timeline, depth)
    executor.close()
    issued = {
        stage: sorted(span.issued_seconds for span in timeline.spans if span.stage == stage)
        for stage in ("put", "step")
    }
    assert (len(issued["put"]), len(issued["step"])) == (PASSES * COUNT + depth, PASSES * COUNT)
    for put, step in zip(issued["put"][depth:], issued["step"], strict=True):
        assert put < step
    spans = [span for span in timeline.spans if span.stage == "read"]
    assert all(span.start_seconds <= span.end_seconds for span in timeline.spans)
    assert {span.record for span in spans} == {f"layers.{i}" for i in range(COUNT)}
    assert {span.lane for span in spans} <= {0, 1}


def test_a_step_that_fails_ends_its_span_too(checkpoint: Checkpoint) -> None:
    timeline = Timeline(keep=True)
    array = jnp.zeros(3)
    array.delete()
    timeline.ends_with("step", "layers.0", array)
    timeline.close()
    timeline.close()
    assert [span.stage for span in timeline.spans] == ["step"]


def test_a_transfer_that_is_over_ends_although_a_step_before_it_goes_on() -> None:
    class Working:
        def __init__(self) -> None:
            self.over = threading.Event()

        def block_until_ready(self) -> None:
            assert self.over.wait(10)

    timeline, step = Timeline(keep=True), Working()
    timeline.ends_with("step", "layers.0", step)
    timeline.ends_with("put", "layers.2", np.zeros(3), size_bytes=24)
    deadline = time.monotonic() + 10
    while not timeline.spans and time.monotonic() < deadline:
        time.sleep(PAUSE / 10)
    assert [(span.stage, span.size_bytes) for span in timeline.spans] == [("put", 24)]
    step.over.set()
    timeline.close()
    put, stepped = timeline.spans
    assert put.end_seconds <= stepped.end_seconds
