"""What runs PTX by NumPy does what the PTX says, and raises where a device would fault."""

from __future__ import annotations

import numpy as np
import pytest

from tests.aot.ptx_machine import run_ptx

MODULE = """.visible .entry doubled(
    .param .u64 .ptr doubled_param_0,
    .param .u64 .ptr doubled_param_1
)
{
    .reg .pred %p<3>;
    .reg .b16 %rs<3>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [doubled_param_0];
    ld.param.b64 %rd2, [doubled_param_1];
    cvta.to.global.u64 %rd3, %rd2;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.s32 %r3, %r2, 32, %r1;
    mul.wide.u32 %rd4, %r3, 4;
    add.s64 %rd5, %rd1, %rd4;
    add.s64 %rd6, %rd3, %rd4;
    setp.lt.u32 %p1, %r3, LIMIT;
    @!%p1 bra $L1;  // jumps forward, also past a label
    ld.global.b32 %r4, [%rd5+OFFSET];
    OPERATION
    st.global.b32 [%rd6], %r5;
$L1:
    ret;
}
"""


def run(words: np.ndarray, operation: str, *, limit: int = 64, offset: int = 0) -> np.ndarray:
    """Of 64 threads in two blocks those below the limit do the operation: %r4 to %r5."""
    text = MODULE.replace("OPERATION", operation).replace("LIMIT", str(limit)).replace("OFFSET", str(offset))
    result = np.zeros(64, np.uint32)
    written = run_ptx(text, [words, result], blocks=2, threads=32)
    assert written.tolist() == [1] * (4 * limit) + [0] * (256 - 4 * limit)
    return result


WORDS = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("shl.b32 %r5, %r4, 1;", WORDS << np.uint32(1)),
        ("shr.s32 %r5, %r4, 40;", (WORDS.view(np.int32) >> 31).view(np.uint32)),
        ("shr.u32 %r5, %r4, 40;", 0 * WORDS),
        ("shf.r.wrap.b32 %r5, %r4, 1, 36;", (WORDS >> np.uint32(4)) | np.uint32(1 << 28)),
        ("shf.l.wrap.b32 %r5, 0, %r4, 36;", WORDS << np.uint32(4)),
        ("bfe.u32 %r5, %r4, 3, 5;", (WORDS >> np.uint32(3)) & np.uint32(31)),
        ("bfe.s32 %r5, %r4, 28, 4;", (WORDS.view(np.int32) >> 28).view(np.uint32)),
        ("popc.b32 %r5, %r4;", np.bitwise_count(WORDS).astype(np.uint32)),
        ("mov.b32 {_, %rs1}, %r4; ", WORDS >> np.uint32(16)),
        ("cvt.rn.f32.s32 %r5, %r4;", WORDS.view(np.int32).astype(np.float32).view(np.uint32)),
        ("cvt.rn.f32.u32 %r5, %r4;", WORDS.astype(np.float32).view(np.uint32)),
        ("shfl.sync.idx.b32 %r5, %r4, 3, 31, -1;", np.repeat(WORDS[[3, 35]], 32)),
    ],
    ids=str,
)
def test_operations(operation: str, expected: np.ndarray) -> None:
    if "rs1" in operation:
        operation += "\n    cvt.u32.u16 %r5, %rs1;"
    np.testing.assert_array_equal(run(WORDS, operation), expected)


def test_threads_that_jumped_do_nothing() -> None:
    found = run(WORDS, "add.s32 %r5, %r4, 1;", limit=40)
    np.testing.assert_array_equal(found, np.where(np.arange(64) < 40, WORDS + np.uint32(1), 0))


def test_what_a_device_would_not_do_raises() -> None:
    with pytest.raises(AssertionError, match="outside"):
        run(WORDS[:63], "mov.b32 %r5, %r4;")
    with pytest.raises(AssertionError, match="outside"):
        run(WORDS, "mov.b32 %r5, %r4;", offset=-4)
    with pytest.raises(AssertionError, match="not aligned"):
        run(np.append(WORDS, WORDS), "mov.b32 %r5, %r4;", offset=2)
    with pytest.raises(AttributeError, match="_atom"):
        run(WORDS, "atom.global.add.u32 %r5, [%rd6], %r4;")
