"""A stream that is closed at an awkward moment: in a step, from elsewhere, by Ctrl-C, as garbage."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacks import save_in_parts, stack
from unreliable_store import Store, check_threads, collect, interrupted_in, time_limit

import endor_jax as endor
from endor_jax.errors import StreamError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Part
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.plan import FixedCosts, Plan
from endor_jax.streaming.prefetch import Prefetcher
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.timeline import Timeline
from endor_jax.streaming.transfer import shares_memory

DEVICE = jax.local_devices()[0]


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with time_limit(20):
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closing") / "x.endor"
    save_in_parts(path, stack(5), 2)
    return path


def streaming(path: Path, timeline: Timeline | None = None) -> Executor:
    """Everything on disk."""
    checkpoint = endor.open(path, reader="preadv")
    manifest = checkpoint.manifest
    records = [Streamable(r.name, r.parts, manifest.layout(r)) for r in manifest.records]
    demands = tuple(record.demand for record in records)
    tiers = ("disk",) * len(records)
    plan = Plan(demands, tiers, FixedCosts(), 2, 2**40, 2**40, shares_memory(DEVICE))
    return Executor(checkpoint, records, plan=plan, devices=one_device(DEVICE), timeline=timeline)


def words(index: int, record: Record) -> Any:
    return record.words


@pytest.mark.parametrize("at", [0, 2, 4])
def test_closed_in_a_step_holds_nothing_when_the_pass_ends(path: Path, at: int) -> None:
    timeline = Timeline(keep=True)
    run = streaming(path, timeline)
    memory = weakref.ref(run._ring.memory.base)

    def step(index: int, record: Record) -> Any:
        if index == at:
            run.close()
        return record.words

    with pytest.raises(StreamError, match=r"a call after close\(\)"):
        run.run(step)
    collect()
    assert memory() is None
    assert not run._in_use
    check_threads(0)  # nor does a watcher go on


def test_closed_from_elsewhere_while_the_device_is_waited_for(path: Path) -> None:
    """What the pass gives back then does not go into a ring that is closed."""
    run = streaming(path)

    class Result:
        def block_until_ready(self) -> None:
            closer = threading.Thread(target=run.close)
            closer.start()
            closer.join()

    with pytest.raises(StreamError, match=r"a call after close\(\)"):
        run.run(lambda index, record: Result())
    assert run._ring.memory.size == 0
    assert not run._ring._free


def test_interrupted_close_goes_on_when_called_again(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        store = Store(path, patch)
        with store.held() as let_go:
            run = streaming(path)
            with interrupted_in("shutdown", then=let_go):
                run.close()
        run.close()
    assert run._ring.memory.size == 0
    check_threads(0)


def test_error_that_ended_a_pass_does_not_keep_its_buffers_after_close(path: Path) -> None:
    run = streaming(path)
    memory = weakref.ref(run._ring.memory.base)

    def step(index: int, record: Record) -> Any:
        held = record  # as frames of an error do
        raise ZeroDivisionError(held.layout.parts)

    with contextlib.suppress(ZeroDivisionError):
        run.run(step)
    run.close()
    collect()
    assert memory() is None


def test_garbage_collected_under_a_lock_that_readers_need_to_end(path: Path) -> None:
    """As `threading.enumerate` holds it while it makes a list, which may collect garbage."""
    dropped: list[Any] = [streaming(path)]
    dropped.append(dropped)  # a cycle, as a layer function that sees its stream is
    executor = weakref.ref(dropped[0])
    with threading._active_limbo_lock:  # pyright: ignore[reportAttributeAccessIssue]
        del dropped
        gc.collect()
    assert executor() is None
    check_threads(0)


def test_dropped_by_the_thread_that_watches(path: Path) -> None:
    timeline = Timeline(keep=True)
    held: list[Any] = [streaming(path, timeline)]

    class Result:
        def block_until_ready(self) -> None:
            held.clear()
            gc.collect()

    timeline.ends_with("step", "layers.0", Result())
    check_threads(0)
    assert not held


def test_dropped_while_its_readers_read_stops_them_soon(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        store = Store(path, patch)
        with store.held() as let_go:
            run = streaming(path)
            checkpoint = run._checkpoint
            del run
            collect()  # waits for nothing
            let_go()
            check_threads(0)
        assert store.reads[checkpoint] <= 4  # and begins nothing that it had asked for


def test_closed_between_a_look_and_a_take() -> None:
    """Whatever the moment, it is the stream that is closed, not a queue that is empty."""

    class Closing(deque[Any]):
        def __getitem__(self, index: Any) -> Any:
            prefetcher.close()
            return super().__getitem__(index)

    prefetcher = Prefetcher(lambda record, part, slot: None, reads=1)
    prefetcher._queue = Closing()
    prefetcher.request("a", [Part("parts/a", 8, 8, 4096, ())], (np.zeros(8, np.uint8),))
    with pytest.raises(StreamError, match="a call after close"):
        prefetcher.take()


def test_system_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    prefetcher = Prefetcher(lambda record, part, slot: None, reads=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(
            StreamError, match="record a, part parts/a: got RuntimeError: can't start new thread"
        ):
            prefetcher.request("a", [Part("parts/a", 8, 8, 4096, ())], (np.zeros(8, np.uint8),))
    prefetcher.close()


def test_results_of_a_pass_outlive_the_stream(path: Path) -> None:
    run = streaming(path)
    sums: list[jax.Array] = []

    def step(index: int, record: Record) -> Any:
        sums.append(jnp.sum(jnp.asarray(record.words[0])[:64]))
        return sums[-1]

    run.run(step)
    first = [int(each) for each in sums]
    run.close()
    assert [int(each) for each in sums] == first
