"""Views read in blocks: any strides, any pieces, and no more memory than the tensor."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from endor_jax.sources import TensorInfo, open_source, stored_tensor
from endor_jax.sources.safetensors_header import Location
from endor_jax.sources.stored_tensor import StoredTensor, read_stored
from tests.sources.tiny_torch_bin import archive, state_dict, storage, view


@st.composite
def strided(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    return shape, tuple(draw(st.integers(0, 40)) for _ in shape), draw(st.integers(0, 9))


@given(what=strided(), block=st.sampled_from([1, 2, 16, 64, 4096]), cuts=st.lists(st.integers(1, 3000)))
def test_any_strides_in_blocks_and_pieces_are_numpys(
    tmp_path_factory: pytest.TempPathFactory,
    what: tuple[tuple[int, ...], tuple[int, ...], int],
    block: int,
    cuts: list[int],
) -> None:
    """Whatever a block holds, and wherever an array is cut into pieces that lie apart in the file."""
    shape, strides, start = what
    data = np.arange(1600, dtype=np.uint16)
    path = tmp_path_factory.getbasetemp() / "elements"
    raw, edges = data.tobytes(), sorted({0, 3200, *cuts})
    content = b"".join(b"?" + raw[low:high] for low, high in pairwise(edges))
    path.write_bytes(content)
    pieces = [
        Location(path, offset=low + i + 1, length=high - low) for i, (low, high) in enumerate(pairwise(edges))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tensor, "BLOCK_BYTES", block)
        got = read_stored(StoredTensor(TensorInfo(shape, "uint16"), tuple(pieces), strides, start), what="t")
    expected = as_strided(data[start:], shape, [2 * stride for stride in strides])
    assert np.array_equal(got, expected)
    assert got.flags.c_contiguous


def test_memory_is_one_tensor_and_some_megabytes(tmp_path: Path) -> None:
    """Of a storage of 24 MB, transposed: the result, and blocks. Opening reads none of it."""
    array = np.arange(6 << 20, dtype=np.int32).reshape(3 << 10, 2 << 10)
    source_bytes = archive(
        state_dict(
            {"t": view(storage("torch.IntStorage", "0", array.size), shape=(2048, 3072), strides=(1, 2048))}
        ),
        {"0": array.tobytes()},
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(source_bytes)
    del source_bytes
    tracemalloc.start()
    try:
        source = open_source(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        got = source.read("t")
        assert tracemalloc.get_traced_memory()[1] < array.nbytes + (9 << 20)
    finally:
        tracemalloc.stop()
    assert np.array_equal(got, array.T)
