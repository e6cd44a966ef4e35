"""Reading flax_model.msgpack: what flax.serialization writes is found without reading it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import linen as nn
from flax import serialization
from flax.serialization import msgpack_restore, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.errors import EndorError, InvalidInputError, NotFoundError, UnsupportedError
from endor_jax.sources import Source, TensorInfo, msgpack_arrays, open_source
from endor_jax.sources.msgpack_arrays import read_arrays
from endor_jax.sources.stored_tensor import read_stored

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)


def opened(directory: Path, content: bytes) -> Source:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "flax_model.msgpack").write_bytes(content)
    return open_source(directory)


def test_names_and_axes_become_torchs(tmp_path: Path) -> None:
    tree = {
        "model": {
            "layers": {"0": {"q_proj": {"kernel": KERNEL, "bias": KERNEL[0]}}},
            "embed_tokens": {"embedding": KERNEL},
            "layer_norm": {"scale": KERNEL[1], "bias": KERNEL[2]},
            "norm": {"weight": KERNEL[0]},
        }
    }
    with opened(tmp_path, to_bytes(tree)) as source:
        assert isinstance(source, Source)
        expected = {
            "model.layers.0.q_proj.weight": KERNEL.T,
            "model.layers.0.q_proj.bias": KERNEL[0],
            "model.embed_tokens.weight": KERNEL,
            "model.layer_norm.weight": KERNEL[1],
            "model.layer_norm.bias": KERNEL[2],
            "model.norm.weight": KERNEL[0],
        }
        assert source.tensors == {name: TensorInfo(it.shape, "float32") for name, it in expected.items()}
        for name, array in expected.items():
            got = source.read(name)
            assert np.array_equal(got, array)
            assert got.flags.c_contiguous
            assert got.flags.writeable


class Small(nn.Module):
    """A layer of each kind that Llama and OPT have."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        rows = nn.Embed(7, 4, name="embed_tokens")(ids)
        return nn.Dense(6, name="fc1")(nn.LayerNorm(name="layer_norm", epsilon=1e-5)(rows))


def test_what_flax_modules_compute_is_what_torchs_would(tmp_path: Path) -> None:
    ids = jax.numpy.array([3, 0, 6])
    parameters = Small().init(jax.random.key(0), ids)["params"]
    parameters = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(jax.random.key(leaf.size), leaf.shape), parameters
    )
    source = opened(tmp_path, to_bytes(parameters))
    w = {name: source.read(name) for name in source.tensors}
    rows = w["embed_tokens.weight"][np.asarray(ids)]
    centred = rows - rows.mean(1, keepdims=True)
    norm = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    norm = norm * w["layer_norm.weight"] + w["layer_norm.bias"]
    expected = norm @ w["fc1.weight"].T + w["fc1.bias"]  # torch.nn.functional.linear
    np.testing.assert_allclose(Small().apply({"params": parameters}, ids), expected, rtol=1e-4, atol=1e-4)


DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.uint8, np.bool_]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TREES = st.recursive(
    st.tuples(SHAPES, st.sampled_from(DTYPES)),
    lambda below: st.dictionaries(st.text(max_size=40), below, max_size=20),
    max_leaves=20,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=40)
@given(tree=TREES)
def test_every_tree_that_flax_writes_is_read_as_flax_reads_it(
    tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.msgpack"
    content = to_bytes(_filled(tree))
    path.write_bytes(content)
    expected = dict(_leaves(msgpack_restore(content)))
    found = read_arrays(path)
    assert list(found) == list(expected)
    for names, stored in found.items():
        got = read_stored(stored, what="t")
        # flax makes bfloat16 of JAX's class; the bits are what counts
        assert got.shape == expected[names].shape
        assert got.tobytes() == expected[names].tobytes()
        assert got.dtype.name == expected[names].dtype.name


def _filled(tree: Any) -> Any:
    if isinstance(tree, tuple):
        return np.random.default_rng(0).integers(0, 2, tree[0]).astype(tree[1])
    return {name: _filled(value) for name, value in tree.items()}


def _leaves(tree: Any, names: tuple[str, ...] = ()) -> Any:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*names, name))
        else:
            yield (*names, name), value


@pytest.mark.parametrize("elements", [12, 5, 1])
def test_arrays_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """flax cuts what is larger than 1 GiB; here the limit is lowered."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 4 * elements)
    tree = {"a": {"kernel": KERNEL}, "b": {"embedding": KERNEL.astype(ml_dtypes.bfloat16)}}
    content = to_bytes(tree)
    assert (b"__msgpack_chunked_array__" in content) == (elements < 12)
    source = opened(tmp_path, content)
    assert np.array_equal(source.read("a.weight"), KERNEL.T)
    assert source.read("b.weight").tobytes() == tree["b"]["embedding"].tobytes()


def test_memory_is_one_tensor_and_some_megabytes(tmp_path: Path) -> None:
    kernel = np.arange(6 << 20, dtype=np.int32).reshape(2048, 3072)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes({"kernel": kernel}))
    tracemalloc.start()
    try:
        source = open_source(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        got = source.read("weight")
        assert tracemalloc.get_traced_memory()[1] < kernel.nbytes + (9 << 20)
    finally:
        tracemalloc.stop()
    assert np.array_equal(got, kernel.T)


def array(
    shape: Any = (2,), dtype: Any = "float32", data: Any = bytes(8), *, kind: int = 1
) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data)))


PIECES = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array(), "1": array()}}
BAD: dict[str, tuple[Any, str]] = {
    "number": ({"a": {"step": 7}}, "'a/step' of .*got 7"),
    "true": ({"step": True}, "'step' of .*got True"),
    "none": ({"step": None}, "'step' of .*type 0xc0"),
    "text": ({"step": "x"}, "'step' of"),
    "float": ({"step": 0.5}, "'step' of"),
    "list": ({"a": [array()]}, "'a' of"),
    "scalar": ({"bias": array(kind=3)}, "'bias' of .*extension type 3"),
    "dtype": ({"bias": array(dtype="object")}, "'bias' of .*dtype 'object'"),
    "size": ({"bias": array(shape=(3,))}, "'bias' of .*8 bytes for float32"),
    "giant": ({"bias": array(shape=(2**62, 0), data=b"")}, "'bias' of .*0 bytes"),
    "deep": ({"bias": array(shape=(1,) * 65, data=bytes(4))}, "'bias' of .*4 bytes"),
    "negative": ({"bias": array(shape=(-2,))}, "'bias' of .*a size of msgpack type"),
    "no shape": ({"bias": array(shape="2")}, "'bias' of .*a shape of msgpack type"),
    "no name": ({"bias": array(dtype=5)}, "'bias' of .*a name of msgpack type"),
    "no data": ({"bias": array(data="12345678")}, "'bias' of .*data of msgpack type"),
    "two parts": ({"bias": msgpack.ExtType(1, msgpack.packb((1, 2)))}, "without its three parts"),
    "not a map": (array(), "got no map"),
    "integer key": ({1: array()}, "a name of msgpack type"),
    "long key": ({"k" * 2000: array()}, "a name of 2,000 bytes"),
    "bytes for a key": ({b"\xff": array()}, "a name that is not UTF-8"),
    "kernel": ({"q": {"kernel": array()}}, r"'q/kernel' of .*'kernel' of shape \(2,\)"),
    "leaf": ({"q": {"mean": array()}}, "'q/mean' of .*'mean' of shape"),
    "twice": ({"q": {"scale": array(), "weight": array()}}, "'q/weight' of .*a second tensor 'q.weight'"),
    "slash": ({"q/bias": array()}, "names with a slash"),
    "pieces": (PIECES | {"shape": {"0": 5}}, "pieces that do not make one"),
    "no pieces": (PIECES | {"chunks": {}}, "pieces that do not make one"),
    "pieces out of order": (PIECES | {"chunks": {"0": array(), "2": array()}}, "pieces that do not"),
    "pieces of two kinds": (
        PIECES | {"chunks": {"0": array(), "1": array(dtype="int32")}},
        "pieces that do not make one",
    ),
    "pieces and more": (PIECES | {"x": array()}, "pieces that do not make one"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_parameter_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    tree, message = BAD[kind]
    tree = {"bias": tree} if "__msgpack_chunked_array__" in tree else tree
    with pytest.raises((UnsupportedError, InvalidInputError), match=message) as raised:
        opened(tmp_path, msgpack.packb(tree))
    assert str(tmp_path) in str(raised.value)


VALID = to_bytes({"model": {"q": {"kernel": KERNEL, "bias": KERNEL[0]}}})
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda valid: b"", "the end of the file at byte 0"),
    "cut": (lambda valid: valid[:-1], "the end of the file"),
    "cut in a name": (lambda valid: valid[:3], "the end of the file"),
    "more": (lambda valid: valid + b"\0", "1 bytes behind the end"),
    "not msgpack": (lambda valid: b"\xc1", "type 0xc1"),
    "lengths that differ": (
        lambda valid: valid.replace(b"\xc4\x30", b"\xc4\x2f"),
        "47 bytes for float32",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    with pytest.raises(EndorError, match=message):
        opened(tmp_path, damage(VALID))


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    one = msgpack.packb("bias") + msgpack.packb(array())
    with pytest.raises(InvalidInputError, match=r"'bias'.*the name twice"):
        opened(tmp_path, b"\x82" + one + one)


def test_endless_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="maps more than 32 deep"):
        opened(tmp_path, b"\x81\xa1a" * 100_000)
    with pytest.raises(InvalidInputError, match="the end of the file"):
        opened(tmp_path, b"\xdf\xff\xff\xff\xff")
    monkeypatch.setattr(msgpack_arrays, "MAXIMUM_ARRAYS", 1)
    with pytest.raises(UnsupportedError, match="more than 1 arrays"):
        opened(tmp_path, VALID)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    names = {}
    for number, name in enumerate(("a/kernel", "b/kernel"), 1):
        file = f"flax_model-0000{number}-of-00002.msgpack"
        module, leaf = name.split("/")
        (tmp_path / file).write_bytes(to_bytes({module: {leaf: KERNEL}}))
        names[name] = file
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_shards(sharded: Path) -> None:
    assert list(open_source(sharded).tensors) == ["a.weight", "b.weight"]
    (sharded / "flax_model-00002-of-00002.msgpack").unlink()
    with pytest.raises(NotFoundError, match=r"no flax_model-00002-of-00002\.msgpack, expected all 2"):
        open_source(sharded)
    (sharded / "flax_model.msgpack.index.json").unlink()
    with pytest.raises(NotFoundError, match=r"flax_model\.msgpack\.index\.json"):
        open_source(sharded)
