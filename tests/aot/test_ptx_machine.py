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
        (
            "prmt.b32 %r5, %r4, 7, 0x4401U;",
            (WORDS & np.uint32(255)) << np.uint32(8)
            | (WORDS >> np.uint32(8)) & np.uint32(255)
            | np.uint32(0x07070000),
        ),
        ("prmt.b32 %r5, %r4, 0, 0xbbbbU;", (WORDS.view(np.int32) >> 31).view(np.uint32)),
        ("mul.hi.u32 %r5, %r4, 0x10000;", WORDS >> np.uint32(16)),
        ("mul.hi.s32 %r5, %r4, 0x10000;", (WORDS.view(np.int32) >> 16).view(np.uint32)),
        ("popc.b32 %r5, %r4;", np.bitwise_count(WORDS).astype(np.uint32)),
        ("mov.b32 {_, %rs1}, %r4; ", WORDS >> np.uint32(16)),
        ("cvt.rn.f32.s32 %r5, %r4;", WORDS.view(np.int32).astype(np.float32).view(np.uint32)),
        ("cvt.rn.f32.u32 %r5, %r4;", WORDS.astype(np.float32).view(np.uint32)),
        ("shfl.sync.idx.b32 %r5, %r4, 3, 31, -1;", np.repeat(WORDS[[3, 35]], 32)),
        ("shfl.sync.bfly.b32 %r5, %r4, 3, 31, -1;", WORDS[np.arange(64) ^ 3]),
        ("shfl.sync.up.b32 %r5, %r4, 2, 0, -1;", WORDS[[0, 1, *range(30), 32, 33, *range(32, 62)]]),
        ("mov.u32 %r5, 0x5; @!%p1 mov.u32 %r5, %r4;", 0 * WORDS + np.uint32(5)),
    ],
    ids=str,
)
def test_operations(operation: str, expected: np.ndarray) -> None:
    if "rs1" in operation:
        operation += "\n    cvt.u32.u16 %r5, %rs1;"
    np.testing.assert_array_equal(run(WORDS, operation), expected)


def shared_address(lanes: str) -> str:
    """%rd8: 16 bytes of the block's shared memory for each lane."""
    return f"mov.b64 %rd7, global_smem; mul.wide.u32 %rd8, {lanes}, 16; add.s64 %rd8, %rd7, %rd8;"


def test_a_block_shares_memory() -> None:
    """Each thread reads what the one beside it in its block wrote, four words at a time."""
    operation = f"""{shared_address("%r1")}
    st.shared.v4.b32 [%rd8], {{%r4, %r1, %r4, %r2}};
    bar.warp.sync -1;
    xor.b32 %r6, %r1, 1;
    {shared_address("%r6")}
    ld.shared.v4.b32 {{%r5, %r6, %r7, %r8}}, [ %rd8 + 0 ];
    add.s32 %r5, %r7, %r6;"""
    lane = np.arange(64, dtype=np.uint32)
    np.testing.assert_array_equal(run(WORDS, operation), WORDS[lane ^ 1] + (lane % 32 ^ 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_stored(transposed: bool) -> None:
    """Lane 8i + r has the address of row r of matrix i; lane 4r + c // 2 the columns c and c + 1 of row r."""
    operation = f"""{shared_address("%r1")}
    stmatrix.sync.aligned.m8n8.x4{".trans" * transposed}.shared.b16 [%rd8], {{%r4, %r1, %r4, %r2}};
    ld.shared.b32 %r5, [%rd8+4];"""
    found = run(WORDS, operation)
    halves = WORDS.view(np.uint16).reshape(2, 8, 8)  # block, row, column
    expected = (halves.swapaxes(1, 2) if transposed else halves)[:, :, 2:4]
    for matrix in (0, 2):
        got = found.reshape(2, 4, 8)[:, matrix]
        np.testing.assert_array_equal(got, np.ascontiguousarray(expected).view(np.uint32)[:, :, 0])


def test_matrices_are_loaded_as_they_were_stored() -> None:
    for how in ("", ".trans"):
        operation = f"""{shared_address("%r1")}
        stmatrix.sync.aligned.m8n8.x4{how}.shared.b16 [%rd8], {{%r1, %r2, %r4, %r3}};
        ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16 {{%r6, %r7, %r5, %r8}}, [%rd8];"""
        np.testing.assert_array_equal(run(WORDS, operation), WORDS)


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
