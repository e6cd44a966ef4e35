"""Scaling: what a pass takes on many devices and hosts. Pure functions of rates; nothing is measured here.

N devices share every layer by rows (tensor parallel), S stages of N devices have successive ranges of layers
(pipeline), a host has D devices. Of a model of W stored bytes per pass, in L layers:

    b = max(W / S, ⌈L / S⌉ · w) / N        bytes that are a device's; w: of a layer
    t = max(0, b − room)                   bytes over each device's link in a pass
        room = device memory − caches − buffers of 4 layers in flight
    f = max(0, D · t − host memory)        bytes that a host reads in a pass
    read     = f / rate of its disks, or of its network from an object store
    transfer = t / rate of a link, of which each device has one
    compute  = m · (⌈L / S⌉ · step + b / weight rate) + caches / memory rate + ends
    gather   = m · (Σ over the gathers of ⌈L / S⌉ layers, and of the head) + one exchange between stages
    seconds  = the slowest of read, transfer and (compute + gather), as `streaming/prediction.py` has it
    tokens/s = batch / (max(S, lanes) · seconds)

m micro-batches pass one after another; each multiplies with all weights again. With S stages, batch / lanes
sequences are in each of them at a time, and each is done with all of its layers, one pass, before it has the
next ones. A gather among n members takes ⌈log₂ n⌉ rounds of latency (no algorithm takes fewer, a ring takes
n − 1) and leaves (n − 1) / n of its bytes over the wire; one over several hosts is first among these, then
inside each. Seconds, bytes, bytes per second throughout.

It is `make_plan` and `predict` in closed form. Left out: that whole records are resident or not, size classes
of buffers, what steps need beside weights and caches, and that W / N is cut into whole rows; so at most a
record per tier is placed otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from endor_jax import models
from endor_jax.arrays import dtype_from_name
from endor_jax.errors import DoesNotFitError, InvalidInputError
from endor_jax.generate.gathers import LOGIT_BYTES, end_gathers, layer_gathers
from endor_jax.generate.placement import MOST_ROWS
from endor_jax.models import LlamaConfig, OptConfig, head_share
from endor_jax.streaming.gather_rates import Gathering
from endor_jax.streaming.plan import DEPTH
from endor_jax.streaming.prediction import Stage, slowest
from endor_jax.streaming.sizes import format_size

IN_FLIGHT = DEPTH + 2
"""Layers whose buffers are on a device at once while it streams."""


@dataclass(frozen=True)
class Exchange:
    """What devices give each other over some wire. latency_seconds: of one round. bytes_per_second: that each
    device, or of wires between hosts each host, can take in."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, left_bytes: int, members: int) -> float:
        """Of a gather that leaves so many bytes with each member."""
        rounds = math.ceil(math.log2(members))
        return rounds * self.latency_seconds + left_bytes * (members - 1) / members / self.bytes_per_second

    def hop_seconds(self, size: int) -> float:
        """Of so many bytes from one to one other."""
        return self.latency_seconds + size / self.bytes_per_second


def exchange_of(gathering: Gathering, members: int) -> Exchange:
    """The exchange whose gathers among so many members, at least two, take what was measured."""
    return Exchange(
        gathering.latency_seconds / math.ceil(math.log2(members)),
        gathering.bytes_per_second * (members - 1) / members,
    )


@dataclass(frozen=True)
class Machine:
    """Rates of a host and of its devices.

    link_bytes_per_second: from host memory to one device; None where both are one memory. disk_, store_: what
    a host reads from its disks, and from an object store. weight_bytes_per_second: stored bytes of weights
    that a step on one device expands and multiplies with. step_seconds: of a layer's step beside that.
    ends_seconds: per pass and micro-batch. memory_bytes_per_second: of reading caches. device_memory_bytes,
    host_memory_bytes: for what is planned, of a device and of a host. inside, between: exchanges of devices
    of one host, and of hosts. processors: where the devices of a host are made of these: their products add
    up, and so do their steps beyond one for each processor; None for devices of their own.
    """

    link_bytes_per_second: float | None
    disk_bytes_per_second: float
    store_bytes_per_second: float
    weight_bytes_per_second: float
    step_seconds: float
    ends_seconds: float
    memory_bytes_per_second: float
    device_memory_bytes: float
    host_memory_bytes: float
    inside: Exchange
    between: Exchange
    processors: int | None = None


@dataclass(frozen=True)
class Spread:
    """How a model is laid over devices: `tensor` devices share every layer, `stages` have ranges of layers.

    lanes: groups into which the batch is split, each in another stage; by default as many as stages.
    micro_batch: most sequences that one step takes. source: what hosts read from.
    Raises InvalidInputError unless tensor · stages devices fill the hosts, and devices of one stage whole
    hosts or a whole share of one.
    """

    tensor: int = 1
    stages: int = 1
    devices_per_host: int = 1
    batch: int = 1
    lanes: int | None = None
    micro_batch: int = MOST_ROWS
    source: Literal["disk", "store"] = "disk"

    def __post_init__(self) -> None:
        per_host = self.devices_per_host
        whole = self.tensor % per_host == 0 or per_host % self.tensor == 0
        if min(self.tensor, self.stages, per_host, self.batch, self.groups) < 1 or not whole or self.spare:
            got = f"{self.stages} stage(s) of {self.tensor} devices, {per_host} to a host"
            raise InvalidInputError(
                "spread",
                got=f"{got}, {self.batch} sequences",
                expected="at least one of each, whole hosts, and stages that fill hosts or divide one",
                fix="make the devices of a stage a multiple or a divisor of those of a host",
            )

    @property
    def devices(self) -> int:
        """All of them."""
        return self.tensor * self.stages

    @property
    def spare(self) -> int:
        """Devices of the last host that nothing is laid over."""
        return -self.devices % self.devices_per_host

    @property
    def hosts(self) -> int:
        """All of them."""
        return self.devices // self.devices_per_host

    @property
    def hosts_per_stage(self) -> int:
        """Over which a layer is spread."""
        return max(1, self.tensor // self.devices_per_host)

    @property
    def groups(self) -> int:
        """The lanes."""
        return self.stages if self.lanes is None else self.lanes

    @property
    def rows(self) -> int:
        """Sequences of one lane."""
        return -(-self.batch // self.groups)


@dataclass(frozen=True)
class Load:
    """A model and what is asked of it. layer_bytes, head_bytes: stored, of one layer, and of the whole head.
    dtype: of activations and caches. context: positions that the caches hold of every sequence."""

    config: LlamaConfig | OptConfig
    layer_bytes: float
    head_bytes: float
    dtype: str = "bfloat16"
    context: int = 2048

    @property
    def stored_bytes(self) -> float:
        """Of all that a pass goes through."""
        return self.config.layers * self.layer_bytes + self.head_bytes


def load_of(
    config: LlamaConfig | OptConfig, bytes_per_weight: float, *, dtype: str = "bfloat16", context: int = 2048
) -> Load:
    """That of a model whose matrices take so many stored bytes for each weight; nothing else is counted."""
    matrices = [shape for shape in models.decoder(config).block_shapes.values() if len(shape) == 2]
    weights = sum(rows * columns for rows, columns in matrices)
    head = config.vocabulary_size * config.embedding_size
    return Load(config, bytes_per_weight * weights, bytes_per_weight * head, dtype, context)


@dataclass(frozen=True)
class Estimate:
    """What one pass of a stage takes, as `Prediction` has it, and what follows.

    device_bytes: of weights that are a device's; transferred_bytes: of these over its link in each pass;
    read_bytes: by each host in each pass. seconds: of a pass of a stage for one lane; binding: what it waits
    for. tokens_per_second: of the whole batch.
    """

    device_bytes: float
    transferred_bytes: float
    read_bytes: float
    read_seconds: float
    transfer_seconds: float
    compute_seconds: float
    gather_seconds: float
    seconds: float
    binding: Stage
    tokens_per_second: float


def estimate(load: Load, spread: Spread, machine: Machine) -> Estimate:
    """The closed form at the top of this file.

    Raises DoesNotFitError where caches and buffers exceed a device, InvalidInputError for more stages than
    layers.
    """
    layers = _layers(load, spread)
    own = max(load.stored_bytes / spread.stages, layers * load.layer_bytes) / spread.tensor
    transferred = max(0.0, own - _room_bytes(load, spread, machine, own))
    read = max(0.0, spread.devices_per_host * transferred - machine.host_memory_bytes)
    rate = machine.disk_bytes_per_second if spread.source == "disk" else machine.store_bytes_per_second
    link = machine.link_bytes_per_second
    figures = {
        "read": read / rate,
        "transfer": 0.0 if link is None else transferred / link,
        "compute": _compute_seconds(load, spread, machine, own),
        "gather": _gather_seconds(load, spread, machine),
    }
    seconds, binding = slowest(**figures)
    turns = max(spread.stages, spread.groups)
    return Estimate(
        own,
        transferred,
        read,
        *figures.values(),
        seconds=seconds,
        binding=binding,
        tokens_per_second=spread.batch / (turns * seconds),
    )


def _layers(load: Load, spread: Spread) -> int:
    """Of the stage that has most."""
    if spread.stages > load.config.layers:
        raise InvalidInputError(
            "spread",
            got=f"{spread.stages} stages",
            expected=f"at most {load.config.layers}, one for each layer",
            fix="take fewer stages and more devices in each",
        )
    return -(-load.config.layers // spread.stages)


def cache_bytes(load: Load, spread: Spread, sequences: int) -> int:
    """Keys and values of some sequences on each device."""
    config = load.config
    width = 2 * head_share(config.heads, config.kv_heads, spread.tensor).kv_heads * config.head_dim
    item = dtype_from_name(load.dtype).itemsize
    return sequences * load.context * width * item * _layers(load, spread)


def _room_bytes(load: Load, spread: Spread, machine: Machine, own: float) -> float:
    """For weights on each device, in its memory."""
    caches = cache_bytes(load, spread, spread.batch)
    room = machine.device_memory_bytes - caches
    if room >= own:
        return room
    shared = machine.link_bytes_per_second is None
    buffers = 0.0 if shared else IN_FLIGHT * load.layer_bytes / spread.tensor
    if room < buffers:
        raise DoesNotFitError(
            f"batch of {spread.batch} on {spread.devices} devices",
            got=f"{format_size(int(machine.device_memory_bytes))} on each",
            expected=f"{format_size(int(caches + buffers))} for caches and buffers",
            fix="lower the batch, or take more devices",
        )
    return room - buffers


def _compute_seconds(load: Load, spread: Spread, machine: Machine, own: float) -> float:
    sharing = 1 if machine.processors is None else spread.devices_per_host
    turns = sharing / min(sharing, machine.processors or sharing)
    steps = _layers(load, spread) * machine.step_seconds + machine.ends_seconds
    caches = cache_bytes(load, spread, spread.rows) / machine.memory_bytes_per_second
    return _micro_batches(spread) * (turns * steps + sharing * own / machine.weight_bytes_per_second) + caches


def _gather_seconds(load: Load, spread: Spread, machine: Machine) -> float:
    config, item = load.config, dtype_from_name(load.dtype).itemsize
    rows = min(spread.rows, spread.micro_batch)
    layers = layer_gathers(config, spread.tensor) * _layers(load, spread)
    sizes = [rows * item * width for width in (*end_gathers(config, spread.tensor), *layers)]
    sizes += [rows * LOGIT_BYTES * config.vocabulary_size] * (spread.tensor > 1)
    inside, hosts = min(spread.tensor, spread.devices_per_host), spread.hosts_per_stage

    def gather(size: int) -> float:
        return machine.inside.seconds(size, inside) + machine.between.seconds(size, hosts)

    return _micro_batches(spread) * math.fsum(map(gather, sizes)) + _hand_over_seconds(load, spread, machine)


def _hand_over_seconds(load: Load, spread: Spread, machine: Machine) -> float:
    """Of x to the next stage, and of the last one's logits to all."""
    if spread.stages == 1:
        return 0.0
    wire = machine.inside if spread.hosts == 1 else machine.between
    x = spread.rows * load.config.hidden_size * dtype_from_name(load.dtype).itemsize
    logits = spread.rows * LOGIT_BYTES * load.config.vocabulary_size
    return wire.hop_seconds(x) + wire.seconds(logits, spread.stages)


def _micro_batches(spread: Spread) -> int:
    return -(-spread.rows // spread.micro_batch)
