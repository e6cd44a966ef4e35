"""The reader of torch files against hostile ones: what it accepts is read again by other means, equal."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from endor_jax.arrays import dtype_from_name
from endor_jax.sources.torch_bin import FILE, open_torch_bin
from endor_jax.sources.torch_bin_pickle import read_views
from tests.sources.fuzzing import NASTY_SIZES, Bench, bench, damaged, settings
from tests.sources.tiny_torch_bin import (
    CLASSES,
    NO_HOOKS,
    archive,
    called,
    named,
    number,
    state_dict,
    storage,
    view,
)
from tests.sources.tiny_torch_bin import text as string

STORAGES = {"0": bytes(range(24)), "1": bytes(range(12)), "2": b""}
TENSORS = {
    "a.weight": view(storage("torch.FloatStorage", "0", 6), shape=(2, 3), strides=(3, 1)),
    "tied": view(storage("torch.FloatStorage", "0", 6), shape=(3, 2), strides=(1, 3)),
    "part": view(storage("torch.BFloat16Storage", "1", 6), shape=(2,), strides=(2,), start=1),
    "none": view(storage("torch.HalfStorage", "2", 0), shape=(0, 5), strides=(5, 1)),
    "é": called(
        "torch._utils._rebuild_parameter",
        view(storage("torch.BFloat16Storage", "1", 6), shape=(), strides=()),
        b"\x88",
        NO_HOOKS,
    ),
}
PICKLE = state_dict(TENSORS)
VALID = archive(PICKLE, STORAGES)


@pytest.fixture(scope="module")
def at() -> Iterator[Bench]:
    with bench("torch reader") as made:
        (made.directory / "config.json").write_text("{}")
        yield made


def check(at: Bench, content: bytes) -> None:
    path = at.directory / FILE
    path.write_bytes(content)
    at.judge(lambda: accepted_is_right(path, content))


def accepted_is_right(path: Path, content: bytes) -> None:
    """`zipfile` gives the members, and NumPy the views of them."""
    with open_torch_bin(path.parent) as source:
        ours = {name: source.read(name) for name in source.tensors}
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        (pickle,) = [name for name in members.namelist() if name.endswith("/data.pkl")]
        views = read_views(without_check(members, pickle), where="the same")
        assert ours.keys() == views.keys()
        for name, array in ours.items():
            its = views[name]
            data = without_check(members, pickle.removesuffix("data.pkl") + f"data/{its.storage.key}")
            flat = np.frombuffer(data, dtype_from_name(its.storage.dtype))
            assert flat.size == its.storage.elements
            strides = [stride * flat.itemsize for stride in its.strides]
            there = as_strided(flat[its.start :], its.shape, strides) if array.size else array
            assert array.shape == its.shape
            assert array.tobytes() == there.tobytes()


def without_check(members: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes, whatever their checksum: torch may be told to leave it out."""
    with members.open(name) as member:
        member._expected_crc = None  # type: ignore[attr-defined]
        return member.read()


def test_the_valid_file_is_accepted(at: Bench) -> None:
    accepted = at.ended["accepted"]
    check(at, VALID)
    assert at.ended["accepted"] == accepted + 1


@settings(4)
@given(content=damaged(VALID, header_bytes=len(VALID) - 1))
def test_damaged_files(at: Bench, content: bytes) -> None:
    check(at, content)


@settings(4)
@given(pickle=damaged(PICKLE, header_bytes=len(PICKLE) - 1))
def test_damaged_pickles_in_whole_archives(at: Bench, pickle: bytes) -> None:
    check(at, archive(pickle, STORAGES))


INSTRUCTIONS = st.one_of(
    st.sampled_from([bytes([byte]) for byte in b"(.0123NKMJ]})etabsuQR\x81\x85\x86\x87\x88\x89\x93\x94\x95"]),
    st.sampled_from(
        [named(name) for name in ("os.system", "builtins.eval", "torch.Size", *CLASSES.values())]
    ),
    st.sampled_from([*TENSORS.values(), NO_HOOKS, named("torch._utils._rebuild_tensor_v2")]),
    st.sampled_from(["storage", "a.weight", "0", "1", "cpu", "_metadata"]).map(string),
    st.sampled_from(NASTY_SIZES).map(number),
    st.integers(0, 9).map(lambda index: b"q" + bytes([index])),
    st.integers(0, 9).map(lambda index: b"h" + bytes([index])),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"X" + (size % 2**32).to_bytes(4, "little")),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"\x8e" + (size % 2**64).to_bytes(8, "little")),
    st.sampled_from(NASTY_SIZES).map(lambda size: b"r" + (size % 2**32).to_bytes(4, "little")),
)


@settings(4)
@given(body=st.lists(INSTRUCTIONS, max_size=30).map(b"".join), wrapped=st.booleans())
def test_pickles_of_any_instructions(at: Bench, body: bytes, wrapped: bool) -> None:
    pickle = state_dict({"w": body}) if wrapped else b"\x80\x02" + body + b"."
    check(at, archive(pickle, STORAGES))


NUMBERS = st.one_of(st.sampled_from([*NASTY_SIZES, -1, -(2**63)]), st.integers(0, 8))
SIZES = st.lists(NUMBERS, max_size=4).map(tuple)


@settings(4)
@given(
    kind=st.sampled_from([*CLASSES.values(), "torch.QInt8Storage", "torch.Size"]),
    key=st.sampled_from(["0", "1", "2", "3", "../0", ""]),
    elements=NUMBERS,
    shape=SIZES,
    strides=SIZES,
    start=NUMBERS,
    fitting=st.booleans(),
)
def test_views_of_any_sizes(
    at: Bench, kind: str, key: str, elements: int, shape: tuple, strides: tuple, start: int, fitting: bool
) -> None:
    if fitting:
        key, kind, elements, strides = "0", "torch.FloatStorage", 6, (*strides, 1, 1, 1, 1)[: len(shape)]
    entry = view(storage(kind, key, elements), shape=shape, strides=strides, start=start)
    check(at, archive(state_dict({"a": TENSORS["a.weight"], "w": entry}), STORAGES))
