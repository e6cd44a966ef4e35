"""The manifest: a JSON round trip, a digest that nothing escapes, versions, and an atomic write."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.arrays import round_up
from endor_jax.errors import (
    CorruptCheckpointError,
    IncompleteCheckpointError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from endor_jax.format.encode import with_escapes
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.stats import TensorStats
from endor_jax.format.values import Codec
from endor_jax.store.digest import digest_json
from endor_jax.store.manifest import (
    JOURNAL_FILE,
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
from endor_jax.store.part import chunk_bytes_for

names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..") and "\0" not in name
)
digests = st.integers(0, 2**64 - 1).map("{:016x}".format)
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
        layout = with_escapes(layout, {name: draw(st.integers(0, 4)) for name in layout.names})
        signatures.append(Signature(layout, tree=draw(st.none() | st.just({"list": list(layout.names)}))))
        for r in range(draw(st.integers(1, 2))):
            parts = tuple(
                Part(
                    f"parts/{s}.{r}.{g}", length := 4 * (layout.streams_start + 20),
                    round_up(length, 4096), chunk_bytes_for(length), (draw(digests),),
                )
                for g in range(layout.parts)
            )  # fmt: skip
            stats = {}
            for name, tensor in layout.tensors:
                elements = math.prod(tensor.shape)
                escapes = min(elements, 4)
                stored = draw(st.integers(0, 2**40))
                stats[name] = TensorStats(elements, draw(st.integers(0, elements)), escapes, stored)
            records.append(StoredRecord(f"layers.{s}.{r}", s, parts, stats))
    model, made = draw(st.none() | st.dictionaries(names, values)), draw(st.dictionaries(names, values))
    files = draw(st.dictionaries(names, digests, max_size=2))
    files |= {f"{p.path}/zarr.json": draw(digests) for record in records for p in record.parts}
    return Manifest(tuple(signatures), tuple(records), model, files, made)


@given(st.data())
def test_json_round_trip(data: st.DataObject) -> None:
    manifest = draw_manifest(data.draw)
    assert from_json(json.loads(json.dumps(to_json(manifest))), "here") == manifest


@pytest.fixture
def value() -> dict[str, Any]:
    """The JSON of a small manifest: one record of one part."""
    layout = plan_layout({"w": TensorSpec((3, 40), "bfloat16", Codec("packed", 2))})
    part = Part("parts/layers.0.0", 4 * (layout.streams_start + 20), 4096, 4096, ("0" * 16,))
    record = StoredRecord("layers.0", 0, (part,), {"w": TensorStats(120, 60, 0, 100)})
    files = {"parts/layers.0.0/zarr.json": "1" * 16}
    return to_json(Manifest((Signature(layout, "w"),), (record,), files=files))


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
        with pytest.raises(CorruptCheckpointError, match=r"^here: got "):
            from_json(changed(value, path, "changed"), "here")


def test_digest_does_not_depend_on_formatting(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert from_json(json.loads(json.dumps(turned, indent=7)), "here") == from_json(value, "here")


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_other_versions_are_refused_by_name(value: dict[str, Any], version: Any) -> None:
    message = (
        rf"here: got format version {version!r}, expected version 1; use the endor_jax release that wrote"
    )
    with pytest.raises(UnsupportedError, match=message):
        from_json(signed(value | {"format_version": version, "more": "of a future kind"}), "here")


def test_a_version_that_was_damaged_is_damage(value: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"here: got a manifest whose digest does not match"):
        from_json(value | {"format_version": 3}, "here")


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
        ((*PART, "length_bytes"), True),
        ((*PART, "length_bytes"), 10**30),
        ((*PART, "length_bytes"), 2**40),
        ((*PART, "length_bytes"), 1301),
        ((*PART, "length_bytes"), -4),
        ((*PART, "buffer_bytes"), 4096.0),
        ((*PART, "buffer_bytes"), 2**29),
        ((*PART, "digests"), ["no digest"]),
        ((*PART, "digests"), [None]),
        ((*PART, "path"), "a/./b"),
        ((*PART, "path"), "a\0b"),
        ((*PART, "path"), "\ud800"),
        ((*PART, "path"), "parts/elsewhere"),
        ((*PART, "path"), ""),
        (("files",), []),
        (("files",), {}),
        (("files",), {"../x": "0" * 16}),
        (("made",), None),
        (("model",), 3),
        (("records", 0, "name"), ""),
        (("records", 0, "signature"), False),
        (("records", 0, "signature"), -1),
        (("records", 0, "stats", "w", "elements"), 121),
        (("records", 0, "stats", "w", "nonzero"), 121),
        (("records", 0, "stats", "w", "stored_bytes"), 1e3),
        (("records",), []),
        (("signatures", 0, "tree"), "v"),
        (("signatures", 0, "tree"), {"list": ["w", "w"]}),
        (("signatures", 0, "tree"), {"set": ["w"]}),
        (("signatures", 0, "tree"), {"none": 0}),
        (("signatures", 0, "parts"), 0),
        (("signatures", 0, "parts"), 10**30),
        (("signatures", 0, "segment"), 512),
        ((*TENSOR, "codec"), "zip"),
        ((*TENSOR, "dtype"), "float12"),
        ((*TENSOR, "shape"), [0, 3]),
        ((*TENSOR, "shape"), 3),
        ((*TENSOR, "shape"), [3, -40]),
        ((*TENSOR, "shape"), [3, 40.0]),
        ((*TENSOR, "shape"), [3, True]),
        ((*TENSOR, "shape"), [2**40, 2**40]),
        ((*TENSOR, "shape"), [10**30, 40]),
        ((*TENSOR, "shape"), [1] * 40),
        ((*TENSOR, "shape"), [2**62, 2**62, 0]),
        ((*TENSOR, "escapes"), 2**26),
        ((*TENSOR, "escapes"), 5),
        ((*TENSOR, "escapes"), -1),
        ((*TENSOR, "dtype"), "a"),
        ((*TENSOR, "dtype"), "i2,i2"),
        ((*TENSOR, "dtype"), "float64"),
        ((*TENSOR, "dtype"), ["bfloat16"]),
        ((*TENSOR, "codec"), 5),
        ((*TENSOR, "codec"), ""),
        ((*TENSOR, "name"), None),
    ],
)
def test_nonsense_with_a_right_digest(value: dict[str, Any], path: tuple[Any, ...], new: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"here: got .*expected the fields of docs/format.md"):
        from_json(signed(changed(value, path, new)), "here")


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"list": [inner]}
    return inner


def test_trees_may_be_deep_but_not_endless(value: dict[str, Any]) -> None:
    tree = ("signatures", 0, "tree")
    assert from_json(signed(changed(value, tree, nested(90, "w"))), "here").signatures[0].tree
    with pytest.raises(CorruptCheckpointError, match=r"at most 100 deep"):
        from_json(signed(changed(value, tree, nested(101, "w"))), "here")


def test_names_occur_once(value: dict[str, Any]) -> None:
    twice = signed(value | {"records": value["records"] * 2})
    with pytest.raises(CorruptCheckpointError, match=r"two records have one name, or two parts one path"):
        from_json(twice, "here")


def test_a_signature_without_records_is_refused(value: dict[str, Any]) -> None:
    more = signed(value | {"signatures": value["signatures"] * 2})
    with pytest.raises(CorruptCheckpointError, match=r"no record has signature 1"):
        from_json(more, "here")


def test_unknown_members_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"the manifest is .*not the members format"):
        from_json(signed(value | {"more": 1}), "here")


def test_write_is_atomic(tmp_path: Path, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = from_json(value, "here")
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (synced.append(os.readlink(f"/proc/self/fd/{f}")), sync(f))[1])
    write_manifest(tmp_path, manifest)
    assert synced == [str(tmp_path / "endor.json.tmp"), str(tmp_path), str(tmp_path)]
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
    unfinished = r"checkpoint .*: got endor.json.tmp, but no endor.json: it was not .*remove it, then convert"
    with pytest.raises(IncompleteCheckpointError, match=unfinished):
        endor.open(tmp_path)


@pytest.mark.parametrize("begun", ["parts", JOURNAL_FILE])
def test_half_written_directory(tmp_path: Path, begun: str) -> None:
    (tmp_path / begun).mkdir()
    with pytest.raises(
        IncompleteCheckpointError, match=rf"got {begun}, but no endor.json: it was not"
    ) as error:
        read_manifest(tmp_path)
    assert error.value.exit_code == 4


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"got no such directory, expected a directory written by"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(NotFoundError, match=r"got a file, expected a directory"):
        read_manifest(tmp_path / "file")
    with pytest.raises(NotFoundError, match=r"got no endor.json, .*; check the path") as error:
        read_manifest(tmp_path)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"\xff\xfe", "bytes that are not UTF-8"),
        (b'{"format": ', r"invalid JSON \(Expecting"),
        (b'{"format": NaN}', r"invalid JSON \(NaN is no number"),
        (b'{"format": -Infinity}', r"invalid JSON \(-Infinity is no number"),
        (b'{"format": ' + b"9" * 5000 + b"}", r"invalid JSON \(Exceeds the limit"),
        (b"[" * 200_000, "JSON nested too deep"),
        (b'{"format": "endor", "made": ' + b'{"a":' * 900 + b"1" + b"}" * 901, ".*"),
    ],
)
def test_unreadable_manifest(tmp_path: Path, data: bytes, got: str) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=rf"endor.json: got {got}.*convert the checkpoint again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("depth", [200, 300, 490, 900, 990, 5000])
def test_deep_but_intact_manifests_never_overflow(tmp_path: Path, value: dict[str, Any], depth: int) -> None:
    """Python's own limits for reading and for writing JSON differ; either is one clear error."""
    body = json.dumps(value | {"made": "MADE"}, indent=1)
    (tmp_path / MANIFEST_FILE).write_text(body.replace('"MADE"', '{"a":' * depth + "1" + "}" * depth))
    with pytest.raises(CorruptCheckpointError):
        read_manifest(tmp_path)


def test_every_byte_of_the_file_counts(tmp_path: Path, value: dict[str, Any]) -> None:
    write_manifest(tmp_path, from_json(value, "here"))
    data = (tmp_path / MANIFEST_FILE).read_bytes()
    for changed_data in (
        data + b"\n",
        data.replace(b"\n ", b"\n\t", 1),
        data.replace(b'"model": null', b'"model": 1, "model": null'),
        data.replace(b'": ', b'" :', 1),
        json.dumps(json.loads(data)).encode(),
    ):
        (tmp_path / MANIFEST_FILE).write_bytes(changed_data)
        with pytest.raises(CorruptCheckpointError, match=r"got other bytes than a writer gives these values"):
            read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_bytes(data)
    read_manifest(tmp_path)


def test_manifest_that_is_no_file(tmp_path: Path) -> None:
    for i, make in enumerate((os.mkdir, os.mkfifo, lambda path: os.symlink(path, path))):
        directory = tmp_path / str(i)
        directory.mkdir()
        make(directory / MANIFEST_FILE)
        with pytest.raises(
            CorruptCheckpointError, match=r"file .*endor.json: got .*expected a file of at most"
        ):
            read_manifest(directory)


def test_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_FILE).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        CorruptCheckpointError, match=r"got 1,099,511,627,776 bytes, expected a file of at most"
    ):
        read_manifest(tmp_path)


def test_numbers_that_json_has_not(tmp_path: Path, value: dict[str, Any]) -> None:
    manifest = from_json(value, "here")
    with pytest.raises(InvalidInputError, match=r"manifest: got .*expected numbers that JSON can hold"):
        write_manifest(tmp_path, Manifest(manifest.signatures, manifest.records, {"scale": math.inf}))


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
