"""`endor.encode` on arrays and trees, and the pytrees that it gives: SparseTensor and Record."""

from __future__ import annotations

import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import endor_jax as endor
from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array, encode_record
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import Codec
from tests import strategies


def weight(shape: tuple[int, ...] = (4, 80), dtype: str = "bfloat16") -> np.ndarray:
    random = np.random.default_rng(0)
    array = (random.standard_normal(shape) * 0.02).astype(dtype)
    array[random.random(shape) < 0.5] = 0
    return array


def codec_of(tensor: SparseTensor) -> str:
    assert isinstance(tensor.layout, FieldLayout)
    return tensor.layout.codec.name


@given(strategies.arrays(max_elements=3000))
def test_any_encodable_array_comes_back(array: np.ndarray) -> None:
    tensor = endor.encode(array)
    assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
    np.testing.assert_array_equal(bits_of(decode(tensor)), bits_of(array))


def test_leaves_that_cannot_be_encoded_stay_as_they_are() -> None:
    tree: dict[str, Any] = {
        "kernel": weight(),
        "bias": np.ones(3, np.float32),
        "ids": np.ones((2, 2), np.int32),
        "empty": np.ones((0, 4), np.float32),
        "steps": 3,
    }
    encoded = endor.encode(tree)
    assert isinstance(encoded["kernel"], SparseTensor)
    assert all(encoded[name] is tree[name] for name in ("bias", "ids", "empty", "steps"))


def test_select_sees_names_and_values_and_decides() -> None:
    seen = []

    def select(name: str, array: Any) -> bool:
        seen.append((name, array.shape))
        return name.endswith("up")

    tree = {"mlp": {"up": weight(), "down": weight((2, 3))}, "list": [weight((5, 5))]}
    encoded = endor.encode(tree, select=select)
    assert seen == [("list.0", (5, 5)), ("mlp.down", (2, 3)), ("mlp.up", (4, 80))]
    assert isinstance(encoded["mlp"]["up"], SparseTensor)
    assert encoded["mlp"]["down"] is tree["mlp"]["down"]
    assert encoded["list"][0] is tree["list"][0]


def test_jax_arrays_are_taken_too() -> None:
    array = weight((3, 40))
    np.testing.assert_array_equal(bits_of(decode(endor.encode(jnp.asarray(array)))), bits_of(array))


@pytest.mark.parametrize("values", ["raw", "packed:1", "packed:3"])
def test_values_name_the_codec(values: str) -> None:
    assert codec_of(endor.encode(weight((8, 256)), values=values)).endswith(values)


@pytest.mark.parametrize(
    "bad", [np.ones(4, np.float32), np.ones((2, 2), np.int8), np.ones((2, 0), np.float32)]
)
def test_arrays_that_the_format_cannot_hold(bad: np.ndarray) -> None:
    got = f"got {bad.dtype.name}{list(bad.shape)}".replace("[", r"\[")
    with pytest.raises(UnsupportedError, match=f"array: {got}, expected bfloat16, float16, float32, rank 2"):
        endor.encode(bad)
    with pytest.raises(UnsupportedError, match=f"array 'a.b': {got}"):
        endor.encode({"a": {"b": bad}}, select=lambda name, leaf: True)


def test_values_that_are_no_codec() -> None:
    with pytest.raises(InvalidInputError, match="value codec: got 'best'"):
        endor.encode(weight(), values="best")


def test_a_sparse_tensor_is_a_pytree_of_its_words() -> None:
    tensor = encode_array(weight(), "packed:2")
    leaves, structure = jax.tree.flatten(tensor)
    assert [leaf.dtype for leaf in leaves] == [np.uint32]
    doubled = jax.tree.map(lambda words: words * 2, tensor)
    assert doubled.layout is tensor.layout
    other = encode_array(weight() * 2, "packed:2")
    assert structure == jax.tree.structure(other)
    assert structure != jax.tree.structure(encode_array(weight(), "packed:3"))
    assert jax.tree.unflatten(structure, leaves).parts == tensor.parts


def test_its_repr_tells_what_it_holds() -> None:
    tensor = encode_array(weight(), "packed:2")
    size = tensor.parts[0].shape[0] * 4
    assert repr(tensor) == f"SparseTensor(bfloat16[4, 80], packed:2, {size:,} bytes in 1 part(s))"
    layout = plan_layout({"bias": TensorSpec((3,), "float32", None)})
    (words,) = encode_record(layout, {"bias": np.ones(3, np.float32)}).parts
    assert repr(Record((words,), layout)["bias"]).startswith("SparseTensor(float32[3], dense, ")


def test_a_record_gives_views_and_names_what_it_has() -> None:
    layout = plan_layout(
        {
            "up": TensorSpec((4, 80), "bfloat16", Codec("packed", 2)),
            "norm": TensorSpec((3,), "float32", None),
        }
    )
    arrays = {"up": weight(), "norm": np.arange(3, dtype=np.float32)}
    record = Record(encode_record(layout, arrays).parts, layout)
    assert list(record) == ["up", "norm"]
    assert record["up"].parts is record.words
    np.testing.assert_array_equal(decode(record["norm"]), arrays["norm"])
    with pytest.raises(KeyError, match="it has up, norm"):
        record["gate"]
    assert len(jax.tree.leaves(record)) == 1
    assert jax.tree.map(lambda words: words, record).layout is layout


def test_arrays_of_the_other_byte_order_keep_their_values() -> None:
    array = np.linspace(1, 2, 12).reshape(3, 4).astype(">f4")
    assert np.array_equal(decode(endor.encode(array)), array)


def test_narrow_matrices_take_little_memory_and_time() -> None:
    """A histogram for every row at once would take 100 MB here, three times, and minutes."""
    array = np.ones((50_000, 2), np.float32)
    tracemalloc.start()
    tensor = endor.encode(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    assert np.array_equal(decode(tensor), array)
