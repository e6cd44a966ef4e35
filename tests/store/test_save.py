"""`save`: trees of every kind come back bit for bit, and what layers share is settled over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import endor_jax as endor
from endor_jax.errors import DestinationExistsError, InvalidInputError, UnsupportedError
from endor_jax.format.decode import decode
from endor_jax.format.layout import DenseLayout, FieldLayout, TensorSpec
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.format.tree import named_leaves, rebuild
from endor_jax.format.values import Codec
from endor_jax.store.save import codec_for, layout_for
from endor_jax.store.verify import verify


def pruned(
    shape: tuple[int, ...], seed: int = 0, *, scale: float = 1.0, dtype: Any = jnp.bfloat16
) -> np.ndarray:
    random = np.random.default_rng(seed)
    array = random.normal(0, scale, shape).astype(dtype)
    return np.where(random.random(shape) < 0.5, array, array.dtype.type(0))


TREES: dict[str, Any] = {
    "dicts": {
        "mlp": {"up": pruned((96, 64)), "down": {"kernel": pruned((64, 96))}},
        "norm": np.ones(64, np.float32),
    },
    "lists": [pruned((64, 64)), [np.arange(3, dtype=np.int32), []], {}],
    "tuples": (np.float32(2.5), (np.zeros((0, 3), np.float32),), ({"a": np.uint8(7)},)),
    "none": {"bias": None, "w": np.full(3, -0.0, np.float32)},
    "numbers": {"epsilon": 1e-5, "heads": 12, "causal": True, "negative": -(2**31)},
    "one array": pruned((64, 80)),
    "kernels": {"conv1": pruned((3, 40, 64)), "conv2": pruned((3, 3, 32, 33), dtype=np.float16)},
    "dtypes": [np.arange(9).astype(d) for d in ("int8", "uint16", "bool", "float16", "bfloat16", "float32")],
    "jax": {"w": jnp.full((70, 64), jnp.nan), "b": jnp.zeros(3)},
    "nothing": {},
}


def stored(leaf: Any) -> np.ndarray:
    """What a leaf is on the device."""
    return np.asarray(jnp.asarray(leaf))


@pytest.mark.parametrize("kind", TREES)
def test_trees_come_back(tmp_path: Path, kind: str) -> None:
    tree = TREES[kind]
    endor.save(tmp_path / "x", [tree, tree])
    with endor.open(tmp_path / "x") as checkpoint:
        manifest = checkpoint.manifest
        assert [record.name for record in manifest.records] == ["layers.0", "layers.1"]
        record = checkpoint.read_record(manifest.records[1])
        leaves = {name: decode(record[name]) for name in record}
        back = rebuild(manifest.signatures[0].tree, leaves)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for got, expected in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert got.dtype == stored(expected).dtype
        assert got.shape == stored(expected).shape
        assert got.tobytes() == stored(expected).tobytes()


def test_nnx_state(tmp_path: Path) -> None:
    state = nnx.state(nnx.Linear(64, 80, rngs=nnx.Rngs(0)))
    manifest = endor.save(tmp_path / "x", [state])
    assert manifest.signatures[0].tree is None
    with endor.open(tmp_path / "x") as checkpoint:
        for name, leaf in named_leaves(state).items():
            assert checkpoint.read_tensor("layers.0", name).tobytes() == np.asarray(leaf).tobytes()


def test_unequal_layers_have_signatures_of_their_own(tmp_path: Path) -> None:
    layers = [{"w": pruned((64, 64), i)} for i in range(3)] + [{"w": pruned((64, 96))}] + [[pruned((64, 64))]]
    manifest = endor.save(tmp_path / "x", layers)
    assert [record.signature for record in manifest.records] == [0, 0, 0, 1, 2]
    assert len({record.buffer_bytes for record in manifest.records[:3]}) == 1


def test_list_and_tuple_are_two_signatures_of_one_layout(tmp_path: Path) -> None:
    leaf = np.ones(3, np.float32)
    manifest = endor.save(tmp_path / "x", [[leaf], (leaf,)])
    assert [record.signature for record in manifest.records] == [0, 1]
    assert manifest.signatures[0].layout == manifest.signatures[1].layout


def test_role_keeps_the_codec_of_its_first_layer(tmp_path: Path) -> None:
    other = (pruned((64, 128), 1).astype(np.float32) * 2.0 ** np.arange(0, 4, 1 / 32)).astype(jnp.bfloat16)
    manifest = endor.save(tmp_path / "x", [{"w": pruned((64, 128), 0)}, {"w": other}])
    assert len(manifest.signatures) == 1
    ((_, tensor),) = manifest.signatures[0].layout.tensors
    assert tensor.escape_capacity == manifest.records[1].stats["w"].escapes
    with endor.open(tmp_path / "x") as opened:
        assert opened.read_tensor("layers.1", "w").tobytes() == other.tobytes()


def test_layer_that_its_roles_codec_would_inflate_gets_another(tmp_path: Path) -> None:
    wide = (pruned((64, 128), 1).astype(np.float32) * 10.0 ** np.arange(-30, 34, 0.5)).astype(jnp.bfloat16)
    manifest = endor.save(tmp_path / "x", [{"w": pruned((64, 128), 0)}, {"w": wide}])
    assert len(manifest.signatures) == 2
    assert manifest.records[1].stats["w"].stored_bytes < wide.nbytes
    with endor.open(tmp_path / "x") as opened:
        assert opened.read_tensor("layers.1", "w").tobytes() == wide.tobytes()


@pytest.mark.parametrize("values", ["raw", "packed", "packed:3", "auto", "int8", "int4"])
def test_values(tmp_path: Path, values: str) -> None:
    manifest = endor.save(tmp_path / "x", [{"w": pruned((64, 64))}], values=values)
    layout = manifest.signatures[0].layout["w"]
    assert isinstance(layout, FieldLayout)
    assert values == "auto" or layout.codec.name.startswith(values)
    assert manifest.made == {"by": "endor_jax.save", "values": values}


@pytest.mark.parametrize(("values", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_come_back_as_the_quantiser_s_elements(tmp_path: Path, values: str, bits: int) -> None:
    layers = [{"w": pruned((64, 300), seed), "norm": np.ones(64, np.float32)} for seed in range(2)]
    manifest = endor.save(tmp_path / "x", layers, values=values)
    assert len(manifest.signatures) == 1
    assert verify(tmp_path / "x").ok
    with endor.open(tmp_path / "x") as opened:
        for index, layer in enumerate(layers):
            held = opened.read_tensor(f"layers.{index}", "w")
            assert held.tobytes() == dequantise(quantise(layer["w"], bits)).tobytes()
            assert opened.read_tensor(f"layers.{index}", "norm").tobytes() == layer["norm"].tobytes()


def test_leaves_that_cannot_be_quantised(tmp_path: Path) -> None:
    weight = pruned((64, 64))
    weight[3, 5] = np.nan
    with pytest.raises(InvalidInputError, match="array to be quantised: got an element of magnitude nan"):
        endor.save(tmp_path / "x", [{"w": weight}], values="int8")


def test_small_and_dense_arrays_are_stored_as_they_are() -> None:
    assert codec_for([pruned((63, 65))], "auto") is None
    assert codec_for([np.zeros(5000, np.float32)], "auto") is None
    assert codec_for([np.zeros((80, 80), np.int32)], "auto") is None
    assert codec_for([pruned((64, 64))], "raw") == Codec("raw")


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_layout_is_cut_by_its_bound(parts: int) -> None:
    spec = TensorSpec((70, 64), "bfloat16", Codec("raw"))
    words = -(-70 * 64 * 17 // 32)
    assert layout_for({"w": spec, "b": TensorSpec((3,), "int8", None)}, most_words=words).parts == 1
    assert layout_for({"w": spec}, most_words=-(-words // parts)).parts == parts


def test_no_layers(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"save: got no layers, expected at least one"):
        endor.save(tmp_path / "x", [])


@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        ("text", "str 'text'"),
        (2**31, "int 2147483648"),
        (object, "type <class 'object'>"),
        (jax.random.key(0), "PRNGKeyArray Array"),
        (jax.ShapeDtypeStruct((3,), jnp.float32), "ShapeDtypeStruct"),
    ],
)
def test_leaves_that_are_no_arrays(tmp_path: Path, leaf: Any, got: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"leaf 'a.b': got {got}.*expected an array, or a number"):
        endor.save(tmp_path / "x", [{"a": {"b": leaf}}])


def test_leaves_that_jax_would_narrow(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"tensor 'w': got dtype float64"):
        endor.save(tmp_path / "x", [{"w": np.zeros(3)}])


def test_destination_is_never_overwritten(tmp_path: Path) -> None:
    endor.save(tmp_path / "x", [{"w": 1}])
    with pytest.raises(DestinationExistsError, match=r"destination .*x: got a finished checkpoint"):
        endor.save(tmp_path / "x", [{"w": 2}])
    (tmp_path / "file").touch()
    with pytest.raises(DestinationExistsError, match=r"got a file, expected a path where nothing is yet"):
        endor.save(tmp_path / "file", [{"w": 2}])
    (tmp_path / "empty").mkdir()
    endor.save(tmp_path / "empty", [{"w": 2}])


def test_byte_order_of_the_other_kind(tmp_path: Path) -> None:
    endor.save(tmp_path / "x", [{"n": np.array([1, 2], ">i4")}])
    with endor.open(tmp_path / "x") as opened:
        assert opened.read_tensor("layers.0", "n").tolist() == [1, 2]


def test_short_rows_that_no_codec_makes_smaller_stay_dense(tmp_path: Path) -> None:
    leaf = np.random.default_rng(0).normal(size=(4000, 3)).astype(jnp.bfloat16)
    manifest = endor.save(tmp_path / "x", [{"w": leaf}])
    assert isinstance(manifest.signatures[0].layout["w"], DenseLayout)
