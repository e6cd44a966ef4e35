"""Moving a part from host memory to the device, in one of four ways.

* `shared`: device and host are one memory (CPU). Nothing is moved: the array is the buffer.
* `registered`: the buffer is pinned where it is (`pinning.py`), and the device copies from there.
* `pinned_host`: the bytes are in a JAX array of memory kind `pinned_host`, and the device copies from there.
  For a part that is kept in host memory that is all; one just read is copied into such an array first.
* `pageable`: JAX copies the bytes into pinned memory of its own first, with one thread.

Which one is fastest differs by jaxlib and machine: `link.py` measures. All give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from endor_jax.errors import UnsupportedError
from endor_jax.streaming.cuda_runtime import CudaRuntime
from endor_jax.streaming.pinning import Pinned, pin

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no types
Way = Literal["shared", "registered", "pinned_host", "pageable"]
WAYS: tuple[Way, ...] = ("pageable", "registered", "pinned_host")
"""Those of a device with memory of its own, simplest first."""
Source: TypeAlias = np.ndarray | jax.Array
"""What `put` takes: a (size,) uint8 buffer, or a (size / 4,) uint32 array in `pinned_host` memory."""


def put(source: Source, size_bytes: int, device: Device, *, way: Way = "pageable") -> jax.Array:
    """The first `size_bytes` of a source as a (size / 4,) uint32 array on the device.

    way: how bytes that are in a NumPy buffer travel; `registered` says that the caller has pinned it. The
    transfer may still be running: the buffer may be written again only after `block_until_ready`. Where
    device and host share memory, nothing is copied (if the buffer is aligned): the array is the buffer, which
    may be written again only when nothing that was computed from the array is still running.
    """
    if isinstance(source, jax.Array):
        if source.nbytes != size_bytes:
            raise ValueError(f"{source.nbytes} bytes are kept of a part of {size_bytes}")
        return jax.device_put(source, SingleDeviceSharding(device))
    words = source[:size_bytes].view(np.uint32)
    if way == "pinned_host":
        return jax.device_put(jax.device_put(words, _pinned_host(device)), SingleDeviceSharding(device))
    return jax.device_put(words, device)


def shares_memory(device: Device) -> bool:
    """Whether arrays on the device are where the host has them: on CPU."""
    return device.platform == "cpu"


@dataclass(frozen=True)
class Kept:
    """Parts held in host memory for `put`, in order; `close` gives back what pins them."""

    sources: tuple[Source, ...]
    pinned: Pinned | None = None

    def close(self) -> None:
        """Unpins the buffers, if they are. Idempotent. Let every transfer from them end before."""
        if self.pinned is not None:
            self.pinned.close()


def keep(
    buffers: Sequence[np.ndarray],
    devices: Sequence[Device],
    *,
    way: Way,
    runtime: CudaRuntime | None = None,
) -> Kept:
    """Buffers of the host tier, (size,) uint8 and page-aligned, in the memory that a way takes them from to
    the device that each is for.

    `pinned_host` copies them; the other ways keep the buffers themselves. Raises UnsupportedError where CUDA
    refuses to pin them.
    """
    if way == "pinned_host":
        arrays = (
            jax.device_put(buffer.view(np.uint32), _pinned_host(device))
            for buffer, device in zip(buffers, devices, strict=True)
        )
        # One after another: beside what is kept, no more than one part is in memory twice.
        return Kept(tuple(jax.block_until_ready(array) for array in arrays))
    if way == "registered":
        return Kept(tuple(buffers), pin(buffers, ordinal=_ordinal(devices[0]), runtime=runtime))
    return Kept(tuple(buffers))


def pin_for(device: Device, buffer: np.ndarray, *, runtime: CudaRuntime | None = None) -> Pinned:
    """Pins the memory of the ring (`ring.memory`) for `put(..., way="registered")`; `close` unpins it.

    Raises UnsupportedError where CUDA refuses.
    """
    return pin([buffer], ordinal=_ordinal(device), runtime=runtime)


def memory_kinds(device: Device) -> tuple[str, ...]:
    """Names of the memories that JAX gives arrays on a device."""
    return tuple(memory.kind for memory in device.addressable_memories())


def _ordinal(device: Device) -> int:
    """The CUDA runtime's number of a device."""
    return device.local_hardware_id or 0


def _pinned_host(device: Device) -> SingleDeviceSharding:
    """Raises UnsupportedError where the platform has no such memory."""
    kinds = memory_kinds(device)
    if "pinned_host" not in kinds:
        raise UnsupportedError(
            f"device {device}",
            got=f"memories {', '.join(kinds)}",
            expected="pinned_host among them",
            fix="take another way",
        )
    return SingleDeviceSharding(device, memory_kind="pinned_host")
