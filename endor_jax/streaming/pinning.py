"""Pinning host memory for a CUDA device: `cudaHostRegister` on page-aligned buffers.

From pinned memory a copy to the device is one transfer by the device's copy engine; any other memory is
copied into pinned memory first. jaxlib from 0.11.2 on asks the driver whether a NumPy array's memory is
pinned and then copies directly; older ones copy it all the same, which measuring shows (`link_rates.py`).
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence

import numpy as np

from endor_jax.errors import StreamError, UnsupportedError
from endor_jax.streaming.cuda_runtime import CudaRuntime, find_runtime

PORTABLE = 1
"""cudaHostRegisterPortable: pinned for all CUDA contexts of the process."""


class Pinned:
    """Buffers whose pages are pinned, until `close` (idempotent) or until it is dropped.

    Keeps the buffers alive, because pages must not go back to the system while they are pinned. Close it only
    when no transfer from them is running.
    """

    def __init__(self, runtime: CudaRuntime, buffers: Sequence[np.ndarray]):
        """What `pin` calls, on the current CUDA device."""
        self._held: list[np.ndarray] = []
        self._unregister = weakref.finalize(self, _unregister, runtime, self._held)
        for buffer in buffers:
            error = runtime.attempt("cudaHostRegister", buffer.ctypes.data, buffer.nbytes, PORTABLE)
            if error is not None:
                pinned = sum(each.nbytes for each in self._held)
                self._unregister()
                raise UnsupportedError(
                    f"pinning {buffer.nbytes:,} bytes of host memory after {pinned:,}",
                    got=error,
                    expected="room for them: pinned pages cannot be swapped out",
                    fix="lower host_memory (--host-memory)",
                )
            self._held.append(buffer)

    @property
    def size_bytes(self) -> int:
        """Bytes that are pinned now."""
        return sum(buffer.nbytes for buffer in self._held)

    def close(self) -> None:
        """Unpins all buffers. Raises StreamError, once all were tried, if CUDA refuses one."""
        errors = self._unregister()  # None from the second time on
        if errors:
            raise StreamError(
                "unpinning host memory",
                got="; ".join(errors),
                expected="success",
                fix="let every transfer end before the stream is closed",
            )


def pin(buffers: Sequence[np.ndarray], *, ordinal: int = 0, runtime: CudaRuntime | None = None) -> Pinned:
    """Pins page-aligned (n,) uint8 buffers (`ring.aligned_buffer`): all of them, or none and an error.

    ordinal: of the CUDA device (`device.local_hardware_id`), whose context is made if it is not there yet;
    the pages are pinned for all devices. runtime: by default the one `find_runtime` finds. Empty buffers need
    no pinning. Takes about a second per GiB. Raises UnsupportedError with CUDA's own message.
    """
    for buffer in buffers:
        if buffer.ctypes.data % mmap.PAGESIZE:
            raise ValueError("only page-aligned memory is pinned: a page may be pinned only once")
    runtime = find_runtime() if runtime is None else runtime
    with runtime.on_device(ordinal):
        return Pinned(runtime, [buffer for buffer in buffers if buffer.nbytes])


def _unregister(runtime: CudaRuntime, held: list[np.ndarray]) -> list[str]:
    """Unpins, last first, and lets go of the buffers; CUDA's errors."""
    errors = []
    while held:
        error = runtime.attempt("cudaHostUnregister", held[-1].ctypes.data)
        held.pop()
        if error is not None:
            errors.append(error)
    return errors
