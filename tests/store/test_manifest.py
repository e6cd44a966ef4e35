"""The manifest: a JSON round trip, a digest that nothing escapes, versions, and an atomic write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError, NotFoundError, UnsupportedError
from endor_jax.format.encode import with_escapes
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.stats import TensorStats
from endor_jax.format.values import Codec
from endor_jax.store.digest import digest_json
from endor_jax.store.manifest import (
    MANIFEST_FILE,
    Manifest,
    Part,
    Signature,
    StoredRecord,
    from_json,
    read_manifest,
    size_classes,
    to_json,
    write_manifest,
)

names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def draw_manifest(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Manifest:
    """Drawn in the test, not in a strategy: beartype uses `random`, which strategies may not."""
    signatures, records = [], []
    for s in range(draw(st.integers(1, 2))):
        specs = {
            name: draw(
                st.sampled_from(
                    [
                        TensorSpec((3, 40), "bfloat16", Codec("packed", 2)),
                        TensorSpec((2, 3, 7), "float32", Codec("raw")),
                        TensorSpec((7, 9), "float16", Codec("raw", bitmap=False)),
                        TensorSpec((5,), "int8", None),
                        TensorSpec((), "bool", None),
                    ]
                )
            )
            for name in draw(st.sets(names, min_size=1, max_size=3))
        }
        layout = plan_layout(specs, parts=draw(st.integers(1, 3)))
        layout = with_escapes(layout, {name: draw(st.integers(0, 9)) for name in layout.names})
        signatures.append(Signature(layout, tree=draw(st.none() | st.just({"list": list(layout.names)}))))
        for r in range(draw(st.integers(1, 2))):
            parts = tuple(
                Part(
                    f"parts/{s}.{r}.{g}", length := 4 * (layout.streams_start + 20), length + 4096, 4096,
                    tuple(draw(names) for _ in range(-(-length // 4096))),
                )
                for g in range(layout.parts)
            )  # fmt: skip
            stats = {
                name: TensorStats(*draw(st.tuples(*[st.integers(0, 2**40)] * 4))) for name in layout.names
            }
            records.append(StoredRecord(f"layers.{s}.{r}", s, parts, stats))
    model, made = draw(st.none() | st.dictionaries(names, values)), draw(st.dictionaries(names, values))
    files = draw(st.dictionaries(names, names, max_size=2))
    return Manifest(tuple(signatures), tuple(records), model, files, made)


@given(st.data())
def test_json_round_trip(data: st.DataObject) -> None:
    manifest = draw_manifest(data.draw)
    assert from_json(json.loads(json.dumps(to_json(manifest))), "here") == manifest


@pytest.fixture
def value() -> dict[str, Any]:
    """The JSON of a small manifest: one record of one part."""
    layout = plan_layout({"w": TensorSpec((3, 40), "bfloat16", Codec("packed", 2))})
    part = Part("parts/layers.0.0", 4 * (layout.streams_start + 20), 4096, 4096, ("ab",))
    record = StoredRecord("layers.0", 0, (part,), {"w": TensorStats(120, 60, 0, 100)})
    return to_json(Manifest((Signature(layout, "w"),), (record,)))


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    return [path]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    node = copy
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = new
    return copy


def signed(value: dict[str, Any]) -> dict[str, Any]:
    body = {key: item for key, item in value.items() if key != "digest"}
    return body | {"digest": digest_json(body)}


def test_any_change_is_seen(value: dict[str, Any]) -> None:
    for path in leaves(value):
        with pytest.raises((CorruptCheckpointError, UnsupportedError), match=r"^here: got "):
            from_json(changed(value, path, "changed"), "here")


def test_digest_does_not_depend_on_formatting(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert from_json(json.loads(json.dumps(turned, indent=7)), "here") == from_json(value, "here")


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_other_versions_are_refused_by_name(value: dict[str, Any], version: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"here: got format version {version}, expected version 1"):
        from_json(value | {"format_version": version, "digest": "of a future kind"}, "here")


@pytest.mark.parametrize("other", [None, [], "text", {}, {"format": "zarr"}])
def test_other_json_is_refused(other: Any) -> None:
    with pytest.raises(
        CorruptCheckpointError, match=r"here: got something else, expected the manifest of an"
    ):
        from_json(other, "here")


def test_wrong_digest(value: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"here: got a manifest whose digest does not match"):
        from_json(value | {"digest": "0"}, "here")


PART = ("records", 0, "parts", 0)
TENSOR = ("signatures", 0, "tensors", 0)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("records",), None),
        (("records", 0), {}),
        (("records", 0, "signature"), 3),
        (("records", 0, "parts"), []),
        (("records", 0, "stats"), {}),
        ((*PART, "path"), "/etc/passwd"),
        ((*PART, "path"), "../other"),
        ((*PART, "length_bytes"), 64),
        ((*PART, "length_bytes"), 10**9),
        ((*PART, "buffer_bytes"), 4095),
        ((*PART, "chunk_bytes"), 0),
        ((*PART, "digests"), []),
        (("signatures", 0, "parts"), 0),
        (("signatures", 0, "segment"), 512),
        ((*TENSOR, "codec"), "zip"),
        ((*TENSOR, "dtype"), "float12"),
        ((*TENSOR, "shape"), [0, 3]),
        ((*TENSOR, "shape"), 3),
    ],
)
def test_nonsense_with_a_right_digest(value: dict[str, Any], path: tuple[Any, ...], new: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"here: got .*expected the fields of docs/format.md"):
        from_json(signed(changed(value, path, new)), "here")


def test_write_is_atomic(tmp_path: Path, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = from_json(value, "here")
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (synced.append(os.readlink(f"/proc/self/fd/{f}")), sync(f))[1])
    write_manifest(tmp_path, manifest)
    assert synced == [str(tmp_path / "endor.json.tmp"), str(tmp_path)]
    assert os.listdir(tmp_path) == [MANIFEST_FILE]
    assert read_manifest(tmp_path) == manifest


def test_interrupted_write_leaves_no_checkpoint(
    tmp_path: Path, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"no space left"):
        write_manifest(tmp_path, from_json(value, "here"))
    with pytest.raises(
        NotFoundError, match=r"checkpoint .*: got no endor.json, .*remove it and run it again"
    ):
        endor.open(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"got no such directory, expected a directory written by"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(NotFoundError, match=r"got no endor.json"):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize(
    ("data", "got"), [(b"\xff\xfe", "bytes that are not UTF-8"), (b'{"format": ', "invalid JSON")]
)
def test_unreadable_manifest(tmp_path: Path, data: bytes, got: str) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=rf"endor.json: got {got}.*convert the checkpoint again"):
        read_manifest(tmp_path)


@given(st.lists(st.integers(1, 300).map(lambda pages: 4096 * pages), min_size=1, max_size=40))
def test_size_classes(lengths: list[int]) -> None:
    classes = size_classes(lengths)
    padded = [min(size for size in classes if size >= length) for length in lengths]
    assert len(classes) <= 4
    assert set(classes) <= set(lengths)
    assert list(classes) == sorted(set(classes))
    assert len(classes) == 4 or sum(padded) <= 1.05 * sum(lengths)


@given(st.integers(2000, 10**6), st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_lengths_within_five_percent_are_one_class(longest: int, shares: list[float]) -> None:
    lengths = [longest, *(longest - int(share * (longest / 21)) for share in shares)]
    assert size_classes(lengths) == (longest,)


def test_few_lengths_are_their_own_classes() -> None:
    lengths = [4096] * 50 + [8192] * 3 + [65536] + [2**20]
    assert size_classes(lengths) == (4096, 8192, 65536, 2**20)
