"""Key maps: what they may say, what they find, what is refused."""

from __future__ import annotations

import json

import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.sources.orbax_key_map import Entry, info_of, key_map_json, parse_key_map, resolve
from endor_jax.sources.source import TensorInfo

ARRAY = TensorInfo((2, 3), "float32")


def key_map(tensors: dict, **rest: object):
    return parse_key_map({"tensors": tensors} | rest, where="map")


def test_layers_are_filled_in_and_what_is_listed_is_left_out() -> None:
    found = resolve(
        key_map(
            {"w.{i}": {"key": "layers_{i}.kernel", "transpose": True}, "norm": "final.scale"},
            ignore=["step", "opt.*"],
        ),
        {
            "layers_0.kernel": ARRAY,
            "layers_11.kernel": ARRAY,
            "final.scale": ARRAY,
            "step": None,
            "opt.a.b": ARRAY,
        },
        where="map",
    )
    assert found == {
        "w.0": Entry("layers_0.kernel", "reversed"),
        "w.11": Entry("layers_11.kernel", "reversed"),
        "norm": Entry("final.scale"),
    }


def test_what_is_written_is_read() -> None:
    tensors = {"a.{i}": "b.{i}.c", "d": "e"}
    read = parse_key_map(json.loads(key_map_json("params", tensors)), where="map")
    assert read.checkpoint == "params"
    assert read.tensors == {name: Entry(key) for name, key in tensors.items()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tensors": {"w": "k"}, "tensor": 3}, "key 'tensor'"),
        ({}, "map: tensors: got None"),
        ({"tensors": {}}, "map: tensors: got {}"),
        ({"tensors": {"w": 3}}, "tensor 'w': got 3, expected a key"),
        ({"tensors": {"w": {"key": "k", "axis": 1}}}, "expected a key, or an object"),
        ({"tensors": {"w.{i}": "k"}}, "tensor 'w.{i}': got key 'k', expected {i} once"),
        ({"tensors": {"w.{i}": "{i}.{i}"}}, "expected {i} once"),
        ({"tensors": {"w": {"key": "k", "transpose": [0, 2]}}}, r"transpose: got \[0, 2\]"),
        ({"tensors": {"w": {"key": "k", "transpose": 1}}}, "transpose: got 1"),
        ({"tensors": {"w": {"key": "k", "shape": [0, 2]}}}, r"shape: got \[0, 2\]"),
        ({"tensors": {"w": {"key": "k", "shape": 6}}}, "shape: got 6"),
        ({"tensors": {"w": "k"}, "ignore": "k"}, "ignore: got 'k'"),
        ({"tensors": {"w": "k"}, "config": []}, r"config: got \[\]"),
        ({"tensors": {"w": "k"}, "checkpoint": ""}, "checkpoint: got ''"),
    ],
)
def test_entries_that_mean_nothing_are_refused(value: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_key_map(value, where="map")


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({"w": "k"}, {"other": ARRAY}, "no array 'k', expected one for w; it has other"),
        ({"w": "k"}, {"k": ARRAY, "other": ARRAY}, "other, which the key map does not name"),
        ({"w": "k", "v": "k"}, {"k": ARRAY}, "'w and v' in one place"),
        ({"w.{i}": "a.{i}", "w.1": "b"}, {"a.1": ARRAY, "b": ARRAY}, "'a.1 and b' in one place"),
        ({"w": "k"}, {"k": None}, "map: k: got something else than an array"),
        ({"w.{i}": "k.{i}"}, {"k.01": ARRAY}, "no array 'k.{i}'"),
    ],
)
def test_maps_that_do_not_fit_are_refused(tensors: dict, keys: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        resolve(key_map(tensors), keys, where="map")


def test_shapes_follow_from_transposing_and_reshaping() -> None:
    kernel = TensorInfo((64, 4, 16), "bfloat16")
    made = info_of(Entry("k", (1, 2, 0), (64, 64)), kernel, where="map")
    assert made == TensorInfo((64, 64), "bfloat16")
    assert info_of(Entry("k", "reversed"), kernel, where="map").shape == (16, 4, 64)
    with pytest.raises(InvalidInputError, match="expected 2 axes to transpose"):
        info_of(Entry("k", (1, 0)), kernel, where="map")
    with pytest.raises(InvalidInputError, match=r"as many elements as \(64, 63\)"):
        info_of(Entry("k", None, (64, 63)), kernel, where="map")
