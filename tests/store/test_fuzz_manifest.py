"""The manifest reader under anything: one clear error or a manifest that is consistent; no crash, no hang.

ENDOR_TEST_FUZZ says how many cases of each kind.
"""

from __future__ import annotations

import copy
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endor_jax.errors import CorruptCheckpointError, UnsupportedError
from endor_jax.format.encode import with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.stats import TensorStats
from endor_jax.format.tree import rebuild
from endor_jax.format.values import Codec
from endor_jax.store.digest import digest_json
from endor_jax.store.manifest import (
    MANIFEST_FILE,
    Manifest,
    Part,
    Signature,
    StoredRecord,
    from_json,
    manifest_bytes,
    read_manifest,
    to_json,
)
from endor_jax.store.part import chunk_bytes_for

FUZZ = int(os.environ.get("ENDOR_TEST_FUZZ", "300"))

seeds = st.integers(0, 2**63)
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 4, 0.5, -0.0, 1e308, 2**31, 2**32, 2**63, 10**30, -(10**30)),
    *(
        "",
        "w",
        "bfloat16",
        "packed:2",
        "dense-raw",
        "../x",
        "/etc/passwd",
        "a\0b",
        "\ud800",
        "0" * 16,
        "x" * 9999,
    ),
    *([], {}, [1], {"list": ["w"]}, {"none": None}, [[]], {"a": {"b": []}}),
)


@cache
def manifest() -> Manifest:
    """Two signatures, three records, two parts, a tree, a dense tensor, escapes."""
    specs = {
        "w": TensorSpec((3, 40), "bfloat16", Codec("packed", 2)),
        "v": TensorSpec((2, 3, 7), "float32", Codec("raw")),
        "b": TensorSpec((5,), "int8", None),
    }
    signatures, records, files = [], [], {"config.json": "a" * 16}
    for index, parts in enumerate((1, 2)):
        layout = with_escapes(plan_layout(specs, parts=parts), {"w": 2, "v": 0, "b": 0})
        tree = {"dict": {"b": "b", "x": {"list": ["v", {"tuple": ["w"]}, {"none": None}]}}} if index else None
        signatures.append(Signature(layout, tree))
        for number in range(2 - index):
            stored = []
            for part in range(parts):
                length = 4 * (layout.streams_start + 200)
                path = f"parts/layers.{index}.{number}.{part}"
                files[f"{path}/zarr.json"] = "b" * 16
                chunk = chunk_bytes_for(length)
                stored.append(Part(path, length, -(-length // 4096) * 4096, chunk, ("c" * 16,)))
            stats = {
                name: TensorStats(math.prod(t.shape), 5, 2 * (name == "w"), 99) for name, t in layout.tensors
            }
            records.append(StoredRecord(f"layers.{index}.{number}", index, tuple(stored), stats))
    made = {"by": "a test", "numbers": [1, 2.5, 1e-5], "text": "é"}
    return Manifest(tuple(signatures), tuple(records), {"model_type": "llama"}, files, made)


def places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, item in items for place in ((node, key), *places(item))]


def mutate(value: dict[str, Any], random: np.random.Generator) -> None:
    """Changes, removes, repeats, exchanges or adds something somewhere."""
    try:
        found = places(value)
    except RecursionError:  # the mutation before made it deep: deep enough
        return
    container, key = found[random.integers(len(found))]
    other, other_key = found[random.integers(len(found))]
    match random.integers(8):
        case 0:
            del container[key]
        case 1:
            container[key], other[other_key] = copy.deepcopy((other[other_key], container[key]))
        case 2 if isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        case 3 if isinstance(container, dict):
            container[str(EXTREMES[random.integers(len(EXTREMES))])[:40]] = container.pop(key)
        case 4:
            for _ in range(random.integers(1, 3000)):
                container[key] = [container[key]] if random.integers(2) else {"list": [container[key]]}
        case 5 if type(container[key]) is int:
            container[key] += int(random.choice([-4096, -4, -1, 1, 4, 4096]))
        case _:
            container[key] = copy.deepcopy(EXTREMES[random.integers(len(EXTREMES))])


def assert_consistent(read: Manifest) -> None:
    """What readers rely on: no allocation and no access follows that the parts do not bear out."""
    assert from_json(json.loads(manifest_bytes(read)), "again") == read
    for record in read.records:
        layout = read.layout(record)
        assert len(record.parts) == layout.parts
        for part in record.parts:
            assert 4 * layout.streams_start < part.length_bytes <= part.buffer_bytes < 2**29 + 4096
            assert part.buffer_bytes - part.length_bytes < max(
                p.length_bytes for r in read.records for p in r.parts
            )
            assert not part.path.startswith("/")
            assert ".." not in part.path.split("/")
        for _, tensor in layout.tensors:
            if isinstance(tensor, FieldLayout):
                assert tensor.offsets.stop <= layout.streams_start
                assert 4 * tensor.escape_capacity < max(p.length_bytes for r in read.records for p in r.parts)
    for signature in read.signatures:
        if signature.tree is not None:
            rebuild(signature.tree, dict.fromkeys(signature.layout.names, 0))


@settings(max_examples=FUZZ)
@given(st.integers(1, 3), st.booleans(), seeds)
def test_structured_mutations(count: int, signed: bool, seed: int) -> None:
    """Without a new digest every change is refused; with one, whatever is accepted is consistent."""
    random = np.random.default_rng(seed)
    value = original = to_json(manifest())
    value = copy.deepcopy(original)
    for _ in range(count):
        mutate(value, random)
    try:
        if signed and "digest" in value:
            value["digest"] = digest_json({key: item for key, item in value.items() if key != "digest"})
        same = json.dumps(value) == json.dumps(original)
    except RecursionError:
        same = False
    read = read_or_refuse(value)
    if read is None:
        assert not same
        return
    assert signed or same or sorted_text(value) == sorted_text(original)
    assert_consistent(read)


def read_or_refuse(value: Any) -> Manifest | None:
    """The manifest, or None where it is refused; whatever else is raised is a failure."""
    try:
        return from_json(value, "here")
    except (CorruptCheckpointError, UnsupportedError):
        return None


def sorted_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@settings(max_examples=FUZZ, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5), seeds)
def test_bytes(tmp_path: Path, kind: int, seed: int) -> None:
    """Of all files, only the one that was written is read."""
    random, data = np.random.default_rng(seed), manifest_bytes(manifest())
    at = int(random.integers(len(data)))
    length = int(random.integers(1, 40))
    tokens = [
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\xff",
        b"\x00",
        b" ",
        b"\n",
    ]
    token = tokens[random.integers(len(tokens))]
    damaged = (
        random.bytes(length),
        bytes([*data[:at], data[at] ^ int(random.integers(1, 256)), *data[at + 1 :]]),
        data[:at],
        data[:at] + token + data[at:],
        data[:at] + data[at + length :],
        data[:at] + data[at : at + length] + data[at:],
    )[kind]
    (tmp_path / MANIFEST_FILE).write_bytes(damaged)
    if damaged == data:
        assert read_manifest(tmp_path) == manifest()
        return
    with pytest.raises(CorruptCheckpointError, match=r"endor.json: got "):
        read_manifest(tmp_path)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists) | st.binary()
)
def test_other_values(value: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"^here: got something else"):
        from_json(value, "here")
