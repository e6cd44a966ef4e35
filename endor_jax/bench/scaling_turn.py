"""One turn of `bench scaling`, in a process that has as many devices: predicted, then measured.

On a slowed store every device has a disk of a fixed rate to itself: the host's is as many times as fast as
it has devices.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from endor_jax.bench.slow_store import SlowCheckpoint
from endor_jax.bench.stream_passes import (
    Passes,
    geometry_of,
    open_runner,
    plan_in_tier,
    time_passes,
    token_pass,
)
from endor_jax.generate.costs import costs_of, product_seconds
from endor_jax.generate.placement import pass_records
from endor_jax.generate.scaling import Exchange, Load, Machine, exchange_of
from endor_jax.store.disk_rates import Rates, Reading
from endor_jax.store.reader import Checkpoint
from endor_jax.store.reader_choice import Choice
from endor_jax.streaming.devices import Devices, first_devices, over_mesh
from endor_jax.streaming.gather_rates import gathering
from endor_jax.streaming.measure import product_curve
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.prediction import Costs, Prediction, predict
from endor_jax.streaming.timeline import Stages

READER = "preadv"
"""From the page cache, which has all of it: what is slower is made so."""


@dataclass(frozen=True)
class Row:
    """What is measured. rate: bytes per second that each device reads; None for the page cache as it is."""

    devices: int
    rate: float | None

    @property
    def store(self) -> str:
        """In words."""
        return "page cache" if self.rate is None else f"{self.rate / 1e6:g} MB/s a device"


@dataclass(frozen=True)
class Turn:
    """prediction: made before the passes. stages: of the passes that followed. read_bytes: by all devices in
    each of these, counted when a record had its turn. machine, load: for the closed form
    (`generate/scaling.py`), with the rates that the prediction is made of; None, as the prediction, for a
    store of which nothing is known. load_average: of the machine, over the minute before."""

    prediction: Prediction | None
    passes: Passes
    stages: Stages
    read_bytes: float
    machine: Machine | None
    load: Load | None
    load_average: float


def take_turn(path: Path, row: Row, *, sequences: int, passes: int) -> Turn:
    """Predicts, makes passes over a model of which all records are on disk, and counts. Raises what loading
    raises."""
    load_average = os.getloadavg()[0]
    devices = over_mesh(first_devices(row.devices))
    with _store(path, row) as checkpoint:
        plan = plan_in_tier(checkpoint, "disk", sequences=sequences, devices=devices)
        shape = geometry_of(checkpoint, sequences, devices=devices.count)
        costs = costs_of(checkpoint.manifest, shape, choice=_choice(checkpoint, row), devices=devices)
        prediction = None if costs is None else predict(plan, costs)
        with open_runner(checkpoint, plan, sequences, devices=devices) as runner:
            one_pass, executor = token_pass(runner, sequences), runner.executor
            one_pass()  # compiles
            before, already = executor.stages, executor.bytes_read
            timed = time_passes(one_pass, passes)
            stages = executor.stages - before
            read = (executor.bytes_read - already) / stages.passes
        machine, load = None, None
        if costs is not None:
            load = _load(checkpoint, plan)
            machine = _machine(checkpoint, costs, devices, sequences=sequences)
    return Turn(prediction, timed, stages, read, machine, load, load_average)


def _store(path: Path, row: Row) -> AbstractContextManager[Checkpoint]:
    if row.rate is None:
        return Checkpoint(path, reader=READER)
    return SlowCheckpoint(path, reader=READER, bytes_per_second=row.devices * row.rate)


def _choice(checkpoint: Checkpoint, row: Row) -> Choice:
    """What is known of the store: of a slowed one its rate, and the copying that the reader does."""
    known = checkpoint.reader_choice
    if row.rate is None:
        return known
    copying = {reads: reading.cpu_seconds_per_byte for reads, reading in known.expected.items()} or {1: 0.0}
    slowed = {reads: Reading(row.devices * row.rate, seconds) for reads, seconds in copying.items()}
    return Choice(READER, "slowed down", {READER: Rates(slowed, slowed)}, known.reads, cached=False)


def _load(checkpoint: Checkpoint, plan: Plan) -> Load:
    """Stored bytes of all devices. plan: with every record on disk."""
    shape = geometry_of(checkpoint, 1)
    layers = sum(demand.read_bytes for demand in plan.demands[: shape.config.layers])
    head = plan.read_bytes_per_pass - layers
    return Load(shape.config, layers / shape.config.layers, float(head), shape.dtype, shape.capacity)


def _machine(checkpoint: Checkpoint, costs: Costs, devices: Devices, *, sequences: int) -> Machine:
    """The rates of the costs. What the closed form does not ask for where everything is on disk is infinite,
    and no memory is for weights."""
    shape, share = geometry_of(checkpoint, sequences, devices=devices.count), devices.share
    first = pass_records(checkpoint.manifest, share)[0]
    curve = functools.partial(product_curve, device=devices.first)
    sharing = len(devices.own)
    products = sharing * product_seconds(first.layout, shape, curve)
    turns = sharing / min(sharing, costs.processors)
    infinite = float("inf")
    measured = gathering(devices)
    micro_batches = -(-sequences // shape.rows)
    return Machine(
        link_bytes_per_second=None,
        disk_bytes_per_second=costs.reading(costs.reads).bytes_per_second,
        store_bytes_per_second=infinite,
        weight_bytes_per_second=first.demand.read_bytes / products,
        step_seconds=(costs.record_seconds[0] / micro_batches - products) / turns,
        ends_seconds=costs.ends_seconds / micro_batches / turns,
        memory_bytes_per_second=infinite,
        device_memory_bytes=float(shape.cache_bytes),
        host_memory_bytes=0.0,
        inside=exchange_of(measured, devices.count) if devices.count > 1 else Exchange(0.0, infinite),
        between=Exchange(0.0, infinite),
        processors=costs.processors,
    )
