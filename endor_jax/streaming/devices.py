"""Where records go: one device, or the devices of a mesh, each of which has its own parts of every record.

A mesh has one axis and may span processes. Of its devices a process reads and moves to only those that are
its own; arrays that are sharded over the mesh are made of what every process has put on its devices, so no
weight ever passes from one to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.peers.peers import Peers, wait_with
from endor_jax.streaming.share import Share
from endor_jax.streaming.transfer import Device

T = TypeVar("T")


@dataclass(frozen=True)
class Devices:
    """The devices of a stream. own: those of this process, in the order of the mesh. mesh: None for one.
    peers: the other processes of the run, where it spans several."""

    own: tuple[Device, ...]
    mesh: Mesh | None = None
    peers: Peers | None = None

    @property
    def first(self) -> Device:
        """The one that is asked what all have in common: platform, memory, ways to get there."""
        return self.own[0]

    @property
    def count(self) -> int:
        """All of them, those of other processes too."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axis(self) -> str | None:
        """The name of the mesh's axis."""
        return None if self.mesh is None else self.mesh.axis_names[0]

    @property
    def share(self) -> Share:
        """Which parts of every record are this process's: its devices' places in the mesh."""
        if self.mesh is None:
            return Share()
        order = list(self.mesh.devices.flat)
        return Share(self.count, tuple(order.index(device) for device in self.own))

    def sharding(self, *axes: str | None, memory_kind: str | None = None) -> Sharding:
        """That of an array whose axes are spread as a `PartitionSpec` of `axes` says; of none, it is whole on
        every device."""
        if self.mesh is None:
            return SingleDeviceSharding(self.first, memory_kind=memory_kind)
        return NamedSharding(self.mesh, PartitionSpec(*axes), memory_kind=memory_kind)

    def everywhere(self, tree: Any) -> Any:
        """A tree of host arrays and numbers, whole on every device. Every process must have the same."""
        if self.mesh is None:
            return jax.device_put(tree, self.first)
        # Not one `device_put` to all: over several processes that compares the values first, on the devices.
        sharding = self.sharding()

        def spread(leaf: Any) -> jax.Array:
            arrays = [jax.device_put(leaf, device) for device in self.own]
            return jax.make_array_from_single_device_arrays(arrays[0].shape, sharding, arrays)

        return jax.tree.map(spread, tree)

    @property
    def several_processes(self) -> bool:
        """Whether some of them belong to other processes."""
        return self.count > len(self.own)

    def wait(self, arrays: T) -> T:
        """`jax.block_until_ready`; over several processes it ends with a PeerError when one of them fails."""
        return wait_with(self.peers, arrays)

    def progress(self) -> None:
        """Says to the other processes that this one gets on, where that takes long without a `wait`."""
        if self.peers is not None:
            self.peers.progress()

    def agree(self, **values: Any) -> None:
        """Raises PeerError, the same in every process, unless all of them say the same."""
        if self.peers is not None:
            self.peers.agree({name.replace("_", " "): str(value) for name, value in values.items()})

    def summands(self, values: np.ndarray) -> jax.Array:
        """(count, ...) spread over the devices: what this process has, on its first one, and zeros."""
        zeros = np.zeros_like(values)
        arrays = [jax.device_put(zeros if i else values, device) for i, device in enumerate(self.own)]
        whole = (self.count, *values.shape)
        return jax.make_array_from_single_device_arrays(
            whole, self.sharding(self.axis), [array[None] for array in arrays]
        )

    def join(self, arrays: Sequence[jax.Array]) -> jax.Array:
        """One array (count · n,), spread over the devices, of a (n,) one on each of this process's."""
        if self.mesh is None:
            (array,) = arrays
            return array
        shape = (self.count * arrays[0].shape[0],)
        return jax.make_array_from_single_device_arrays(shape, self.sharding(self.axis), list(arrays))


def one_device(device: Device) -> Devices:
    """A single device, without a mesh."""
    return Devices((device,))


def first_devices(count: int) -> Mesh:
    """A mesh of the first `count` devices of all processes. Raises OptionError if there are fewer."""
    devices = jax.devices()
    if not 1 <= count <= len(devices):
        raise OptionError(
            "tensor parallelism",
            got=f"{count} devices",
            expected=f"1 to {len(devices)}, which is what JAX sees here",
            fix="ask for fewer; on a CPU JAX_NUM_CPU_DEVICES says how many it makes of it",
        )
    return Mesh(np.array(devices[:count]), ("model",))


def first_stages(stages: int, devices: int) -> Mesh:
    """A mesh of the first devices of all processes, in so many pipeline stages of so many `devices` each.

    Raises OptionError if there are fewer.
    """
    there = jax.devices()
    if stages < 1 or devices < 1 or stages * devices > len(there):
        raise OptionError(
            "pipeline parallelism",
            got=f"{stages} stages of {devices} devices",
            expected=f"at most {len(there)} devices in all, which is what JAX sees here",
            fix="ask for fewer, or join more processes",
        )
    return Mesh(np.array(there[: stages * devices]).reshape(stages, devices), ("stage", "model"))


def plain_mesh(mesh: Any, *, peers: Peers | None = None) -> Mesh:
    """A mesh of the same devices that says nothing of how its axes are used, once it is found usable.

    Raises InvalidInputError for what is no mesh of devices, a device that is there twice, a mesh over several
    processes without `peers`, or inside `jax.set_mesh`; PeerError unless all processes have the same mesh.
    """
    if not isinstance(mesh, Mesh):
        raise _unusable(f"{type(mesh).__name__} {mesh!r:.60}", "a jax.sharding.Mesh of devices")
    numbers = [device.id for device in mesh.devices.flat]
    if peers is not None:
        peers.agree({"mesh": f"{dict(mesh.shape)} of devices {numbers}"})
    if len(set(numbers)) < len(numbers):
        raise _unusable(f"devices {numbers}", "each device once")
    processes = {device.process_index for device in mesh.devices.flat}
    if len(processes) > 1 and peers is None:
        raise _unusable(
            f"devices of {len(processes)} processes, and no peers", "peers=endor.join(...) with it"
        )
    if not jax.sharding.get_abstract_mesh().empty:
        raise _unusable("one inside jax.set_mesh", "a call outside: the steps bring their own mesh")
    return Mesh(mesh.devices, mesh.axis_names)


def _unusable(got: str, expected: str) -> InvalidInputError:
    fix = 'make it with jax.make_mesh((N,), ("model",))'
    return InvalidInputError("mesh", got=got, expected=expected, fix=fix)


def stages_over(mesh: Mesh, *, peers: Peers | None = None) -> dict[int, Devices]:
    """The devices of each pipeline stage that has some of this process, by the stage's number.

    mesh: of one axis, for a single stage, or of two: stages, and the devices that share the layers of each.
    Raises InvalidInputError for any other, and for one without a device of this process.
    """
    if len(mesh.axis_names) != 2:
        return {0: over_mesh(mesh, peers=peers)}
    process = jax.process_index()
    staged = {
        number: over_mesh(Mesh(row, mesh.axis_names[1:]), peers=peers)
        for number, row in enumerate(mesh.devices)
        if any(device.process_index == process for device in row)
    }
    if not staged:
        raise _no_mesh(mesh, own=0)
    # Of a single device no array has to be spread: then a stage computes as one device alone does.
    return {number: replace(each, mesh=None) if each.count == 1 else each for number, each in staged.items()}


def over_mesh(mesh: Mesh, *, peers: Peers | None = None) -> Devices:
    """The devices of a mesh. Raises InvalidInputError unless it has one axis, and devices of this process."""
    process = jax.process_index()
    own = tuple(device for device in mesh.devices.flat if device.process_index == process)
    if len(mesh.axis_names) != 1 or not own:
        raise _no_mesh(mesh, own=len(own))
    return Devices(own, mesh, peers)


def _no_mesh(mesh: Mesh, *, own: int) -> InvalidInputError:
    return _unusable(
        f"axes {dict(mesh.shape)} with {own} devices of this process",
        "one axis (two for a pipeline), and devices of every process that loads the model",
    )
