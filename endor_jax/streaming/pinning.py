"""Pinning host memory for a CUDA device: `cudaHostRegister` on page-aligned buffers, through ctypes.

From pinned memory a copy to the device is one transfer by the device's copy engine; any other memory is
copied into pinned memory first. jaxlib from 0.11.2 on asks the driver whether a NumPy array's memory is
pinned and then copies directly; older ones copy it all the same, which measuring shows (`link_rates.py`).

Pages are pinned for all CUDA contexts of the process (the portable flag), so it does not matter that XLA has
loaded a libcudart of its own. Source: CUDA Runtime API, "Memory Management".
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endor_jax.errors import StreamError, UnsupportedError

SONAMES = ("libcudart.so.13", "libcudart.so.12")
PORTABLE = 1
"""cudaHostRegisterPortable."""
HOST_TO_DEVICE = 1
"""cudaMemcpyHostToDevice."""
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_ARGUMENTS = {
    "cudaGetDevice": (ctypes.POINTER(_INT),),
    "cudaSetDevice": (_INT,),
    "cudaGetLastError": (),
    "cudaHostRegister": (_POINTER, _SIZE, ctypes.c_uint),
    "cudaHostUnregister": (_POINTER,),
    "cudaMalloc": (ctypes.POINTER(_POINTER), _SIZE),
    "cudaFree": (_POINTER,),
    "cudaMemcpy": (_POINTER, _POINTER, _SIZE, _INT),
    "cudaMemGetInfo": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
}
"""Calls that return a cudaError_t, 0 for success."""


@dataclass(frozen=True)
class CudaRuntime:
    """A libcudart that is loaded. `call` raises UnsupportedError with CUDA's own message."""

    path: str
    library: ctypes.CDLL

    def attempt(self, name: str, *arguments: object) -> str | None:
        """Calls a function; None, or CUDA's name and text of its error, which is then forgotten there."""
        code = getattr(self.library, name)(*arguments)
        if code == 0:
            return None
        self.library.cudaGetLastError()  # or the next user of this library in the thread would see it
        short, text = self.library.cudaGetErrorName(code), self.library.cudaGetErrorString(code)
        return f"{short.decode()} ({text.decode()})"

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that has to succeed."""
        error = self.attempt(name, *arguments)
        if error is not None:
            raise UnsupportedError(
                f"{name} of {self.path}",
                got=error,
                expected="success",
                fix="check the NVIDIA driver with nvidia-smi, or stream with way='pageable'",
            )

    @contextmanager
    def on_device(self, ordinal: int) -> Iterator[None]:
        """Calls inside are for this CUDA device; the thread's current one is set back afterwards."""
        before = _INT()
        self.call("cudaGetDevice", ctypes.byref(before))
        self.call("cudaSetDevice", ordinal)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)


def load_runtime(path: str) -> CudaRuntime:
    """libcudart by its path or soname, with the signatures that are used here.

    Raises UnsupportedError if it cannot be loaded or is no CUDA runtime.
    """
    try:
        library = ctypes.CDLL(path)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, _INT
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(library, name)
            function.argtypes, function.restype = (_INT,), ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise UnsupportedError(
            f"CUDA runtime {path}",
            got=str(error),
            expected="a libcudart",
            fix="install jax with CUDA from pip (pip install 'endor_jax[cuda]'), which brings one",
        ) from error
    return CudaRuntime(path, library)


def find_runtime(paths: Sequence[str] | None = None) -> CudaRuntime:
    """The first libcudart that loads, of these or of `runtime_paths()`. Raises UnsupportedError."""
    refusals = []
    for path in runtime_paths() if paths is None else paths:
        try:
            return load_runtime(path)
        except UnsupportedError as error:
            refusals.append(error.got)
    raise UnsupportedError(
        "pinned memory",
        got=f"no CUDA runtime ({'; '.join(refusals)})",
        expected="libcudart, which NVIDIA's pip wheels or a CUDA installation bring",
        fix="pip install 'endor_jax[cuda]', or stream with way='pageable'",
    )


def runtime_paths() -> tuple[str, ...]:
    """Where a libcudart may be, best first: the one in this process, those in pip's wheels, the system's."""
    loaded = []
    maps = Path("/proc/self/maps")
    if maps.exists():
        names = (line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines())
        loaded = sorted({name for name in names if Path(name).name.startswith("libcudart.so")})
    wheels = importlib.util.find_spec("nvidia")
    places = (wheels.submodule_search_locations or ()) if wheels else ()
    found = [
        str(path)
        for name in SONAMES
        for place in places
        for path in sorted(Path(place).glob(f"*/lib/{name}"))
    ]
    return (*loaded, *found, *SONAMES)


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
                    fix="lower host_memory (--host-memory), or stream with way='pageable'",
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
