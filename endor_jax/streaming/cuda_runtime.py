"""The CUDA runtime, through ctypes: found, loaded, and its errors in its own words.

XLA has loaded a libcudart of its own. Which one is called does not matter: both work in the device's one
context. Source: CUDA Runtime API, "Device Management" and "Memory Management".
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from endor_jax.errors import UnsupportedError

SONAMES = ("libcudart.so.13", "libcudart.so.12")
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
                fix="check the NVIDIA driver with nvidia-smi",
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
        fix="pip install 'endor_jax[cuda]'",
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


def unclaimed_bytes(runtime: CudaRuntime, ordinal: int) -> int:
    """Memory of a CUDA device that no process has claimed, JAX's pool included. Raises UnsupportedError."""
    free, total = _SIZE(), _SIZE()
    with runtime.on_device(ordinal):
        runtime.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value
