"""The executor over a store that stalls, fails, truncates, disappears: any order of events, always checked.

`ENDOR_TEST_STATEFUL=2000` tries more of them (BUILD.md).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from layer_stacks import save_in_parts, stack
from unreliable_store import (
    RAISED,
    CheckedRing,
    LateStep,
    LateWords,
    NotAnException,
    Store,
    check_threads,
    collect,
    interrupted_in,
    separate_memory,
    time_limit,
)

import endor_jax as endor
from endor_jax.errors import EndorError, StreamError
from endor_jax.format.decode import decode
from endor_jax.format.record import Record
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming import executor as executor_module
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.plan import FixedCosts, Plan, Tier
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.transfer import Device

EXAMPLES = int(os.environ.get("ENDOR_TEST_STATEFUL", "8"))
DEVICES = jax.local_devices()
LAYERS, PARTS = 6, 2
DAMAGES = ("truncated", "emptied", "removed", "directory removed", "raises")

tier = st.sampled_from(("disk", "disk", "disk", "host", "device"))
which = st.integers(0, 99)
moment = st.integers(0, LAYERS - 1)


@dataclass(frozen=True)
class Layout:
    """How a stream is opened."""

    tiers: tuple[Tier, ...] = ("disk",) * LAYERS
    depth: int = 2
    reads: int = 2
    reader: str = "preadv"


layouts = st.builds(
    Layout,
    tiers=st.lists(tier, min_size=1, max_size=LAYERS).map(tuple),
    depth=st.integers(1, 4),
    reads=st.integers(1, 3),
    reader=st.sampled_from(("preadv", "preadv", "tensorstore")),
)


class Opened:
    """A stream that is open, and what has to be true of it.

    passes: those that were run whole. damaged: records that were damaged at any time since it was opened.
    good_since: whole passes since the damage that is still there.
    """

    def __init__(self, store: Store, layout: Layout, *, shared: bool, device: Device):
        checkpoint, tiers = Checkpoint(store.path, reader=layout.reader), layout.tiers
        LateWords.alive.pop(device, None)  # of a stream before, which an error may still hold
        manifest = checkpoint.manifest
        records = [Streamable(r.name, r.parts, manifest.layout(r)) for r in manifest.records[: len(tiers)]]
        demands = tuple(record.demand for record in records)
        self.plan = Plan(demands, tiers, FixedCosts(), layout.depth, 2**40, 2**40, shared, layout.reads)
        self.store, self.checkpoint, self.device = store, checkpoint, device
        self.executor = Executor(checkpoint, records, plan=self.plan, devices=one_device(device))
        ring = self.executor._ring
        assert isinstance(ring, CheckedRing)
        self.ring, self.ring_bytes = ring, ring.memory.size
        self.turns = self.passes = self.good_since = 0
        self.damaged: set[str] = set(store.damaged)

    @property
    def reads_what_is_whole(self) -> bool:
        """Whether it reads anything, and nothing that was damaged."""
        return bool(self.plan.read) and not self.can_fail

    @property
    def can_fail(self) -> bool:
        """Whether something that it reads in every pass was damaged."""
        return bool(self.damaged & {self.plan.demands[i].name for i in self.plan.read})

    def run(self, at: int = 0, act: Callable[[], object] = lambda: None) -> None:
        """One pass; at some record `act` is called. Order and contents of the records are checked."""
        turn = 0
        steps: list[LateStep] = []

        def step(index: int, record: Record) -> LateStep:
            nonlocal turn
            assert index == turn
            turn += 1
            self.turns += index in self.plan.read
            self.check_memory()
            if index == at % len(self.plan.tiers):
                act()
            steps.append(LateStep(self.store, self.plan.demands[index].name, record))
            return steps[-1]

        self.executor.run(step)
        assert all(step.done for step in steps)
        assert turn == len(self.plan.tiers)
        self.passes += 1
        self.good_since += 1
        stays = sum(d.read_bytes for d in self.plan.demands) - self.plan.read_bytes_per_pass
        assert self.executor.bytes_read == stays + self.passes * self.plan.read_bytes_per_pass

    def run_for_ever(self) -> None:
        """Pass after pass, until something is raised."""
        while True:
            self.run()

    def check_memory(self) -> None:
        """No more bytes than the plan says, and nothing read but what the ring has room for."""
        assert len(self.ring.out) <= self.plan.slots
        assert self.ring.memory.size == self.ring_bytes
        alive = sum(words.nbytes for words in LateWords.alive[self.device])
        assert alive <= self.plan.resident_bytes + self.plan.stream_buffer_bytes
        stays = len(self.plan.tiers) - len(self.plan.read)
        begun = self.store.reads.get(self.checkpoint, 0)
        assert begun <= PARTS * (stays + self.turns + self.plan.ring_records)

    def check_closed(self) -> None:
        """It says that it is closed, and holds nothing."""
        with pytest.raises(StreamError, match="a call after"):
            self.executor.run(lambda index, record: None)
        self.executor.close()
        assert self.ring.memory.size == 0
        assert not self.ring._free
        held = (self.executor._resident, self.executor._kept, self.executor._in_use)
        assert not any(held)
        assert not self.executor._on_their_way


class NothingOpen(Exception):
    """A rule does nothing then. Not a precondition: threads differ in time, but what is drawn must not."""


def rule_with_limit(**drawn: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule that may not take long, and does nothing where no stream is open."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def limited(self: Engine, **values: Any) -> None:
            with time_limit(), contextlib.suppress(NothingOpen):
                function(self, **values)

        return rule(**drawn)(limited)

    return decorate


class Engine(RuleBasedStateMachine):
    """Streams over one checkpoint, at most two at once, and what happens to it and to them."""

    def __init__(self, path: Path, *, shared: bool):
        super().__init__()
        self.patch, self.shared = pytest.MonkeyPatch(), shared
        self.store = Store(path, self.patch)
        self.patch.setattr(executor_module, "Ring", CheckedRing)
        if not shared:
            separate_memory(self.patch)
        self.streams: list[Opened] = []

    def teardown(self) -> None:
        with time_limit():
            while self.streams:
                self.streams.pop().executor.close()
            self.store.repair()
            self.patch.undo()
            check_threads(0)

    def _one(self, index: int, *, good: bool = False) -> Opened:
        """One of those that are open, or else one anew. good: that reads something, which was not damaged."""
        if not self.streams and not self.store.damaged:
            self._open(Layout())
        streams = [opened for opened in self.streams if not good or opened.reads_what_is_whole]
        if not streams:
            raise NothingOpen
        return streams[index % len(streams)]

    @contextlib.contextmanager
    def ends(self, index: int, *, good: bool = False) -> Iterator[Opened]:
        """A stream that is closed afterwards, whether by an error, which is checked, or not."""
        opened = self._one(index, good=good)
        self.streams.remove(opened)
        try:
            yield opened
        except EndorError as error:
            if "a call after close()" not in str(error):
                opened.store.check_error(error, opened.damaged)
            del error
        opened.check_closed()

    def _open(self, layout: Layout) -> None:
        taken = [opened.device for opened in self.streams]
        device = DEVICES[0] if self.shared else next(each for each in DEVICES if each not in taken)
        self.streams.append(Opened(self.store, layout, shared=self.shared, device=device))

    @rule_with_limit(layout=layouts)
    def open(self, layout: Layout) -> None:
        if len(self.streams) == 2:
            return
        damaged = self.store.damaged
        expected = any(how != "raises" for how in damaged.values())
        names = [record.name for record in self.store.manifest.records]
        expected |= any(t != "disk" and n in damaged for n, t in zip(names, layout.tiers, strict=False))
        if not expected:
            self._open(layout)
            return
        with pytest.raises(BaseException) as caught:  # noqa: PT011  # whatever a read raises
            self._open(layout)
        assert isinstance(caught.value, EndorError) or "raises" in damaged.values()

    @rule_with_limit(index=which, passes=st.integers(1, 3))
    def run(self, index: int, passes: int) -> None:
        opened = self._one(index)
        try:
            for _ in range(passes):
                opened.run()
        except EndorError as error:
            self.streams.remove(opened)
            self.store.check_error(error, opened.damaged)
            assert opened.can_fail
            opened.check_closed()
        if any(self.store.damaged.get(opened.plan.demands[i].name) for i in opened.plan.read):
            ahead = -(-opened.plan.ring_records // len(opened.plan.read))
            assert opened.good_since <= ahead + 1, "damage goes unnoticed"

    @rule_with_limit(
        index=which, at=moment, kind=st.sampled_from((ZeroDivisionError, KeyboardInterrupt, NotAnException))
    )
    def raise_in_a_step(self, index: int, at: int, kind: type[BaseException]) -> None:
        def act() -> None:
            raise kind

        with self.ends(index) as opened, contextlib.suppress(kind):
            opened.run(at, act)

    @rule_with_limit(index=which, at=moment)
    def close_in_a_step(self, index: int, at: int) -> None:
        with self.ends(index) as opened:
            opened.run(at, opened.executor.close)

    @rule_with_limit(index=which, at=moment)
    def run_within_a_pass(self, index: int, at: int) -> None:
        opened = self._one(index)

        def act() -> None:
            with pytest.raises(StreamError, match="one pass at a time"):
                opened.executor.run(lambda index, record: None)

        if not opened.can_fail:
            opened.run(at, act)

    @rule_with_limit(index=which, soon=st.floats(0, 0.01), held=st.booleans())
    def close_from_another_thread(self, index: int, soon: float, held: bool) -> None:
        with self.ends(index) as opened:
            closer = threading.Timer(soon, opened.executor.close)
            with self.store.held(seconds=2 * soon) if held else contextlib.nullcontext():
                closer.start()
                try:
                    while not closer.finished.is_set() or closer.is_alive():
                        opened.run()
                finally:
                    closer.join()

    @rule_with_limit(index=which)
    def interrupt_while_waiting(self, index: int) -> None:
        with (
            self.ends(index, good=True) as opened,
            self.store.held() as let_go,
            interrupted_in("take", then=let_go),
        ):
            opened.run_for_ever()  # until everything that was read ahead is used up

    @rule_with_limit(index=which)
    def close(self, index: int) -> None:
        with self.ends(index) as opened:
            opened.executor.close()

    @rule_with_limit(index=which)
    def drop(self, index: int) -> None:
        self.streams.remove(self._one(index))
        collect()

    @rule_with_limit(
        record=moment, part=which, how=st.sampled_from(DAMAGES), raised=st.integers(0, len(RAISED) - 1)
    )
    def damage(self, record: int, part: int, how: Any, raised: int) -> None:
        if "all gone" not in self.store.damaged.values():
            self.store.damage(record, part, how, raised=raised)
            self._note()

    @rule_with_limit(index=which, record=which, part=which, how=st.sampled_from(DAMAGES))
    def damage_what_is_read(self, index: int, record: int, part: int, how: Any) -> None:
        opened = self._one(index, good=True)
        read = opened.plan.read
        self.store.damage(read[record % len(read)], part, how, raised=record)
        self._note()
        self.streams.remove(opened)
        with pytest.raises(EndorError) as caught:  # noqa: PT012  # in one of them
            for _ in range(opened.plan.ring_records // len(read) + 2):
                opened.run()
        self.store.check_error(caught.value, opened.damaged)
        opened.check_closed()

    @rule_with_limit()
    def disappear(self) -> None:
        if not self.store.damaged:
            self.store.disappear()
            self._note()

    def _note(self) -> None:
        for opened in self.streams:
            opened.damaged |= self.store.damaged.keys()
            opened.good_since = 0

    @rule_with_limit()
    def repair(self) -> None:
        self.store.repair()

    @rule_with_limit(milliseconds=st.sampled_from((0, 1, 3)))
    def stall(self, milliseconds: int) -> None:
        self.store.longest_pause = milliseconds / 1000

    @invariant()
    def memory_and_threads_are_bounded(self) -> None:
        for opened in self.streams:
            opened.check_memory()
        check_threads(sum(opened.plan.reads for opened in self.streams))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("stateful") / "x.endor"
    save_in_parts(path, stack(LAYERS), PARTS)
    gc.collect()
    gc.freeze()  # streams collect garbage when they are closed: here, what was made meanwhile
    yield path
    gc.unfreeze()


@pytest.mark.parametrize("shared", [True, False], ids=["one memory", "separate memory"])
def test_any_order_of_events(path: Path, shared: bool) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: Engine(path, shared=shared)),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],  # what is shrunk runs hundreds of times, and times differ
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_words_are_compared_with_those_that_decode_to_the_layers(path: Path) -> None:
    """What the machine takes for the truth is true."""
    with endor.open(path) as opened:
        for record, layer in zip(opened.manifest.records, stack(LAYERS), strict=True):
            read = opened.read_record(record)
            assert all(decode(read[name]).tobytes() == array.tobytes() for name, array in layer.items())
