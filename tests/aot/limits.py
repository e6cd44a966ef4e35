"""What a compiled kernel must keep to: asked of each when it is compiled, and of the committed record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from endor_jax.arrays import dtype_from_name
from tests.aot.cases import Case
from tests.aot.compiler import Compiled

PER_ELEMENT = 24
"""Machine instructions per element that any codec may take. An H200 moves the 2.75 bytes of an element of
bfloat16 `packed:2` at half sparsity in the time of about 19."""
PER_ELEMENT_AS_BUILT = 14
"""Of bfloat16 `packed:2` on an H200, whose 11 are in docs/kernels.md: a change that costs much is noticed."""
SMALLEST_MEASURED = 2**20
"""Elements of a matrix that instructions per element are asked of: of a smaller one threads have too few."""


def broken_limits(case: Case, compiled: Compiled) -> list[str]:
    """What this case does not keep to, in words; empty where all is well."""
    return [f"{case}: {each}" for each in (*_kernels(case, compiled), *LIMITS[case.kernel](case, compiled))]


def _kernels(case: Case, compiled: Compiled) -> Iterator[str]:
    """Of every kernel on every device."""
    target = f"sm_{case.capability.replace('.', '')}"
    for kernel in compiled.kernels:
        if kernel.spill_bytes:
            yield f"{kernel.name} spills {kernel.spill_bytes} bytes"
        if kernel.target.rstrip("a") != target:
            yield f"{kernel.name} is for {kernel.target}"


def _expand(case: Case, compiled: Compiled) -> Iterator[str]:
    """One kernel, which stores 16 bytes at once where rows are made of them; and nothing else of the
    matrix's size, but the escapes scattered over the result in place."""
    if len(compiled.kernels) != 1:
        yield f"{len(compiled.kernels)} kernels"
        return
    (kernel,) = compiled.kernels
    itemsize, elements = dtype_from_name(case.dtype).itemsize, math.prod(case.shape)
    if case.shape[-1] * itemsize % 16 == 0 and set(kernel.stores) != {"128"}:
        yield f"stores of {kernel.stores} bits"
    per_element = compiled.instructions_per_element
    if elements >= SMALLEST_MEASURED and per_element > _most_per_element(case):
        yield f"{per_element:.1f} instructions per element, at most {_most_per_element(case)}"
    expected = ("custom-call",) + (("fusion of scatter",) if case.escapes else ())
    if compiled.large_operations != expected:
        yield f"{compiled.large_operations} of the matrix's size, expected {expected}"
    if compiled.output_bytes != elements * itemsize:
        yield f"a result of {compiled.output_bytes:,} bytes"
    if compiled.temporary_bytes > elements // 8:
        yield f"{compiled.temporary_bytes:,} bytes of temporaries"


def _product(case: Case, compiled: Compiled) -> Iterator[str]:
    """One kernel; nothing of the matrix's size beside it, and never an eighth of the dense bytes."""
    if len(compiled.kernels) != 1:
        yield f"{len(compiled.kernels)} kernels"
        return
    dense_bytes = math.prod(case.shape) * dtype_from_name(case.dtype).itemsize
    per_element = compiled.instructions_per_element
    if _few_rows(case) and per_element > PER_ELEMENT:
        yield f"{per_element:.1f} instructions per element, at most {PER_ELEMENT}"
    if math.prod(case.shape) < SMALLEST_MEASURED:
        return
    if compiled.large_operations:
        yield f"{compiled.large_operations} of the matrix's size"
    if compiled.temporary_bytes >= dense_bytes / 8:
        yield f"{compiled.temporary_bytes:,} bytes of temporaries beside {dense_bytes:,} dense ones"


def _few_rows(case: Case) -> bool:
    """The rows of x that the instructions of a large matrix are counted for."""
    return math.prod(case.shape) >= SMALLEST_MEASURED and case.rows <= (1 if case.kernel == "vector" else 16)


def _most_per_element(case: Case) -> int:
    as_built = (case.dtype, case.codec) == ("bfloat16", "packed:2")
    return PER_ELEMENT_AS_BUILT if as_built else PER_ELEMENT


LIMITS: dict[str, Callable[[Case, Compiled], Iterator[str]]] = {
    "expand": _expand,
    "mosaic expand": _expand,
    "vector": _product,
    "tensor": _product,
}
