"""The reader of msgpack files against hostile ones: what it accepts, flax reads the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_restore, to_bytes
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.sources.msgpack_arrays import read_arrays
from endor_jax.sources.stored_tensor import read_stored
from tests.sources.fuzzing import NASTY_SIZES, Bench, Content, bench, damaged, settings


def array(shape: Any, dtype: Any, data: Any) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


TREE = {
    "model": {
        "q": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.arange(3, dtype=np.float16)},
        "é": {"scale": np.arange(4).astype(ml_dtypes.bfloat16)},
        "none": {"embedding": np.zeros((0, 5), np.int8)},
    },
    "pieces": {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 2},
        "chunks": {"0": np.arange(3, dtype=np.int32), "1": np.arange(1, dtype=np.int32)},
    },
}
VALID = to_bytes(TREE)


@pytest.fixture(scope="module")
def at() -> Iterator[Bench]:
    with bench("msgpack reader") as made:
        yield made


def check(at: Bench, content: bytes) -> None:
    path = at.directory / "flax_model.msgpack"
    path.write_bytes(content)
    at.judge(lambda: accepted_is_right(path, content))


def accepted_is_right(path: Path, content: bytes) -> None:
    ours = {names: read_stored(stored, what="t") for names, stored in read_arrays(path).items()}
    # This raises where flax refuses, and no EndorError: accepting such a file fails the test.
    theirs = dict(leaves(msgpack_restore(content)))
    assert ours.keys() == theirs.keys()
    for names, got in ours.items():
        assert got.shape == theirs[names].shape
        assert got.dtype.name == theirs[names].dtype.name
        assert got.tobytes() == theirs[names].tobytes()


def leaves(tree: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*names, name))
        else:
            yield (*names, name), value


def test_the_valid_file_is_accepted(at: Bench) -> None:
    accepted = at.ended["accepted"]
    check(at, VALID)
    assert at.ended["accepted"] == accepted + 1


@settings(3)
@given(content=damaged(VALID, header_bytes=len(VALID) - 1))
def test_damaged_files(at: Bench, content: bytes) -> None:
    check(at, content)


TOKENS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b"\x81", b"\x82", b"\x93\x91\x02\xa7float32\xc4\x08", b"\xd8\x01", b"\xc3", b"\xc0"]),
    st.sampled_from(["a", "kernel", "shape", "chunks", "0", "1", "__msgpack_chunked_array__"]).map(
        msgpack.packb
    ),
    st.sampled_from(NASTY_SIZES).map(msgpack.packb),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"\xdf" + (size % 2**32).to_bytes(4, "big")),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"\xc9" + (size % 2**32).to_bytes(4, "big") + b"\x01"),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"\xdb" + (size % 2**32).to_bytes(4, "big")),
)


@settings(3)
@given(content=st.lists(TOKENS, max_size=12).map(lambda tokens: Content(b"\x81\xa1m" + b"".join(tokens))))
def test_any_tokens(at: Bench, content: bytes) -> None:
    check(at, content)


NUMBERS = st.one_of(st.sampled_from(NASTY_SIZES), st.integers(-3, 6), st.sampled_from([True, None, 1.5, "2"]))
SHAPES = st.one_of(st.lists(NUMBERS, max_size=4), st.just([1] * 65), NUMBERS)
NAMES = st.sampled_from(["float32", "bfloat16", "int8", "object", "float33", "", "V4", "U1", "<f4", 5, None])
DATA = st.one_of(st.binary(max_size=24), st.sampled_from([bytes(4), bytes(8), "text", None, 3]))
ARRAYS = st.one_of(st.builds(array, SHAPES, NAMES, DATA), st.just(array((2,), "float32", bytes(8))))
PIECES = st.fixed_dictionaries(
    {
        "__msgpack_chunked_array__": st.sampled_from([True, True, False, 1]),
        "shape": st.dictionaries(
            st.sampled_from(["0", "1", "x"]), st.one_of(st.just(2), NUMBERS), max_size=3
        ),
        "chunks": st.dictionaries(st.sampled_from(["0", "1", "2"]), ARRAYS, max_size=3),
    }
)


@settings(3)
@given(
    tree=st.dictionaries(st.sampled_from(["a", "b", "shape"]), st.one_of(ARRAYS, PIECES, NUMBERS), max_size=3)
)
def test_trees_with_one_thing_wrong(at: Bench, tree: dict[str, Any]) -> None:
    check(at, msgpack.packb(tree))
