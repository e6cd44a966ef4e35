"""`expand` as it was compiled, run by NumPy: the oracle's bits, nothing outside, all written once.

It sees what comes after a kernel's logic: JAX's lowering, Triton or Mosaic, LLVM. ptxas comes behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from endor_jax.arrays import bits_of
from endor_jax.format.encode import encode_array
from endor_jax.format.layout import FieldLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.config import WARP, expand_block
from endor_jax.kernels.expand import mosaic, triton
from endor_jax.kernels.expand.by_part import PartRows
from endor_jax.kernels.warpgroup import THREADS
from tests import shapes
from tests.aot.compiler import Compiler, compiler, missing
from tests.aot.ptx_machine import run_ptx
from tests.kernels.test_expand_conformance import every_dtype_and_codec, stored
from tests.lowering import abstract

pytestmark = [pytest.mark.aot, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def aot() -> Iterator[Compiler]:
    with compiler() as opened:
        yield opened


@every_dtype_and_codec
@pytest.mark.parametrize("name", ["word_tail", "segment_of_one_column", "two_segments", "rank_3"])
@pytest.mark.parametrize("kernel", ["triton", "mosaic"])
def test_what_is_compiled_equals_the_oracle(
    aot: Compiler, kernel: str, dtype: str, codec: str, name: str
) -> None:
    array, source = stored(shapes.BY_NAME[name], dtype, codec)
    tensor = encode_array(source, codec)
    layout, words = tensor.layout, np.asarray(tensor.parts[0])
    assert isinstance(layout, FieldLayout)
    expand = {"triton": triton.expand, "mosaic": mosaic.expand}[kernel]
    # Escapes are XLA's: what NumPy runs is the kernel.
    ptx = aot.ptx(expand, abstract(SparseTensor((words,), replace(layout, escape_capacity=0))))
    result = np.zeros(array.size, layout.number.unsigned)
    if kernel == "mosaic":
        blocks, threads = mosaic.programs(PartRows(layout, first=0, count=layout.rows)), THREADS
    else:
        block = expand_block(layout)
        blocks, threads = -(-layout.rows // block.rows) * layout.segments, WARP * block.warps
    assert np.all(run_ptx(ptx, [words, result], blocks=blocks, threads=threads) == 1)
    start, escapes = words[layout.header : layout.header + 2]
    result[words[start : start + escapes]] = words[start + escapes :].view(result.dtype)[:escapes]
    np.testing.assert_array_equal(result, bits_of(array).reshape(-1))
