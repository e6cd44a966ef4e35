"""Records and SparseTensors through Orbax: bit for bit, no larger than their words, one layer at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.adapters.orbax import restore, save
from endor_jax.adapters.orbax_description import describe, parse_description
from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationExistsError,
    EndorError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    UnsupportedError,
)

WORDS_BYTES = int(os.environ.get("ENDOR_ORBAX_BYTES", 16 << 20))
"""How many bytes of words the size of a checkpoint is measured with."""


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns)).astype(ml_dtypes.bfloat16)
    return np.where(random.random(values.shape) < 0.5, np.zeros_like(values), values)


def layer(seed: int, size: int = 64) -> dict[str, Any]:
    weights = {"up": matrix(size, 2 * size, seed), "down": matrix(2 * size, size, seed + 100)}
    return endor.encode(weights) | {"scale": np.linspace(0, seed, size, dtype=np.float32)}


def words_of(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(tree)]


def assert_same(got: Any, expected: Any) -> None:
    assert jax.tree_util.tree_structure(got) == jax.tree_util.tree_structure(expected)
    for one, other in zip(words_of(got), words_of(expected), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture
def records(tmp_path: Path) -> list[endor.Record]:
    """Three Records, of two signatures, one of them cut into parts."""
    endor.save(tmp_path / "a", [{"w": matrix(64, 96), "b": np.ones(5, np.float32)}, {"w": matrix(64, 96, 1)}])
    with endor.open(tmp_path / "a") as opened:
        return [opened.read_record(record) for record in opened.manifest.records]


def test_a_tree_comes_back_bit_for_bit_without_being_described(tmp_path: Path, records: list) -> None:
    tree = {
        "layers": [layer(0), layer(1)],
        "records": tuple(records),
        "quantised": endor.encode(matrix(32, 256), values="int4"),
        "plain": {"step": 3, "rate": 0.5, "norm": jnp.ones((4,), jnp.bfloat16), "nothing": None, "e": {}},
        "a.b": {"c": np.arange(6).reshape(2, 3)},
    }
    save(tmp_path / "saved", tree)
    got = restore(tmp_path / "saved")
    assert_same(got, jax.tree_util.tree_map(np.asarray, tree))
    assert {type(leaf) for leaf in jax.tree_util.tree_leaves(got)} == {np.ndarray}
    for i in range(2):
        np.testing.assert_array_equal(
            endor.expand(got["layers"][i]["up"]), endor.expand(tree["layers"][i]["up"])
        )


def test_one_record_alone_is_a_tree(tmp_path: Path, records: list) -> None:
    save(tmp_path / "saved", records[0])
    assert_same(restore(tmp_path / "saved"), records[0])
    assert_same(restore(tmp_path / "saved")["w"].parts, records[0]["w"].parts)


def test_branches_and_leaves_are_found_by_name(tmp_path: Path, records: list) -> None:
    tree = {"layers": records, "a.b": {"c": layer(2)}, "a": {"b": np.ones(2)}}
    save(tmp_path / "saved", tree)
    assert_same(restore(tmp_path / "saved", "layers.1"), records[1])
    assert_same(restore(tmp_path / "saved", "layers"), records)
    assert_same(restore(tmp_path / "saved", "a.b.c.up"), tree["a.b"]["c"]["up"])
    with pytest.raises(InvalidInputError, match=r"got the name 'layers.2', expected .* such as a.b, "):
        restore(tmp_path / "saved", "layers.2")
    with pytest.raises(NotFoundError, match="got nothing there, expected a directory that"):
        restore(tmp_path / "elsewhere")


def test_on_disk_are_the_words_and_little_else(tmp_path: Path) -> None:
    size = 256
    one = sum(leaf.nbytes for leaf in words_of(layer(0, size)))
    tree = [layer(seed, size) for seed in range(-(-WORDS_BYTES // one))]
    save(tmp_path / "saved", tree)
    words = sum(leaf.nbytes for leaf in words_of(tree))
    os.sync()  # blocks are given to a file only when it is written out
    stored = sum(file.stat().st_blocks * 512 for file in (tmp_path / "saved").rglob("*"))
    assert words <= stored <= 1.02 * words


def test_restoring_one_layer_reads_that_layer_only(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    tree = [layer(seed, 256) for seed in range(6)]
    save(tmp_path / "saved", tree)
    restore(tmp_path / "saved", "0")  # imports are read too
    before = bytes_read()
    got = restore(tmp_path / "saved", "4")
    read = bytes_read() - before
    assert_same(got, tree[4])
    one = sum(leaf.nbytes for leaf in words_of(got))
    assert one <= read < 1.5 * one


def test_orbax_reads_it_as_a_tree_of_arrays(tmp_path: Path) -> None:
    tree = {"w": endor.encode(matrix(16, 16))}
    save(tmp_path / "saved", tree)
    plain = ocp.v1.load(str(tmp_path / "saved"))
    np.testing.assert_array_equal(plain["w"]["parts"][0], tree["w"].parts[0])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "text"}, "got str 'text', expected a Record"),
        ({"key": jax.random.key(0)}, "expected a Record, a SparseTensor, an array or a number"),
        ({1: np.ones(2)}, "containers that JSON cannot name"),
        (np.ones(2), "got a single array"),
        ({"a": {"none": np.ones((0, 3))}}, r"a\.none: got an array of shape \(0, 3\), without elements"),
    ],
)
def test_trees_that_cannot_be_named_are_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        save(tmp_path / "saved", tree)
    assert not (tmp_path / "saved").exists()


def test_views_are_refused_and_nothing_is_overwritten(tmp_path: Path, records: list) -> None:
    with pytest.raises(UnsupportedError, match=r"leaf 'views.b': .* view of a record.*save the Record"):
        save(tmp_path / "saved", {"views": {"b": records[0]["b"], "w": records[0]["w"]}})
    save(tmp_path / "saved", records)
    with pytest.raises(DestinationExistsError, match="already there"):
        save(tmp_path / "saved", records)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a directory with room that this user may write to"):
        save(tmp_path / "file" / "saved", records)


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    save(tmp_path / "saved", [layer(0), layer(1)])
    largest = max((f for f in (tmp_path / "saved").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    with pytest.raises((CorruptCheckpointError, InvalidInputError), match=r"digest|Orbax checkpoint"):
        restore(tmp_path / "saved")


def description(directory: Path) -> tuple[Path, dict[str, Any]]:
    file = directory / "_CHECKPOINT_METADATA"
    return file, json.loads(file.read_text())


def test_other_checkpoints_and_versions_are_named(tmp_path: Path) -> None:
    ocp.v1.save(str(tmp_path / "plain"), {"w": np.ones(3)})
    with pytest.raises(InvalidInputError, match="no description of records"):
        restore(tmp_path / "plain")
    with pytest.raises(InvalidInputError, match="a checkpoint that Orbax reads"):
        restore(tmp_path)
    save(tmp_path / "saved", [layer(0)])
    file, metadata = description(tmp_path / "saved")
    metadata["custom_metadata"]["endor"]["version"] = 2
    file.write_text(json.dumps(metadata))
    with pytest.raises(UnsupportedError, match="got version 2, expected version 1"):
        restore(tmp_path / "saved")


def changed(metadata: Any, steps: tuple[Any, ...], value: Any) -> None:
    for step in steps[:-1]:
        metadata = metadata[step]
    metadata[steps[-1]] = value


@pytest.mark.parametrize(
    ("steps", "value"),
    [
        (("tree",), {"list": [{"dict": {"up": "0.up"}}]}),
        (("tree",), {"set": []}),
        (("layouts",), 7),
        (("layouts", 0, "parts"), 2),
        (("layouts", 0, "tensors", 0, "shape"), [2**20, 2**20]),
        (("layouts", 0, "tensors", 0, "shape"), [2048, 4096]),
        (("layouts", 0, "tensors", 0, "escapes"), 2**26),
        (("layouts", 0, "tensors", 0, "name"), "other"),
        (("layouts", 0, "tensors", 0, "codec"), "zip"),
        (("layouts", 0, "segment"), 512),
        (("packed", "0.up", "layout"), 9),
        (("packed", "0.up", "layout"), True),
        (("packed", "0.up", "record"), True),
        (("packed", "0.up", "digests"), []),
        (("packed", "0.up", "digests"), ["x"]),
        (("packed", "0.other"), {"record": False, "layout": 0, "digests": ["0" * 16]}),
        (("packed",), []),
        (("more",), 1),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused_before_reading(
    tmp_path: Path, steps: tuple[Any, ...], value: Any
) -> None:
    save(tmp_path / "saved", [layer(0)])
    file, metadata = description(tmp_path / "saved")
    changed(metadata["custom_metadata"]["endor"], steps, value)
    file.write_text(json.dumps(metadata))
    with pytest.raises(CorruptCheckpointError, match=r"Orbax checkpoint .* got a description with"):
        restore(tmp_path / "saved")


@pytest.fixture
def named() -> dict[str, Any]:
    return {"a.0": endor.encode(matrix(4, 8)), "b": endor.encode(matrix(8, 8))}


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=3)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_description_is_refused_or_describes_the_same_leaves(
    named: dict[str, Any], data: st.DataObject
) -> None:
    value = json.loads(json.dumps(describe({"dict": {"a": {"list": ["a.0"]}, "b": "b"}}, named)))
    node, steps = value, []
    while isinstance(node, dict | list) and node and (not steps or data.draw(st.booleans())):
        steps.append(data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))))
        node = node[steps[-1]]
    changed(value, tuple(steps), data.draw(JSON))
    shapes = {f"{name}.parts.0": tensor.parts[0].shape for name, tensor in named.items()}
    try:
        found = parse_description(value, shapes, where="W")
    except EndorError:
        return
    for name, packed in found.packed.items():
        assert packed.layout["array"].shape == packed.own.shape
        assert packed.layout.streams_start < named[name].parts[0].shape[0]
