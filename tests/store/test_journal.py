"""The journal: whole lines come back, and the first that is not whole ends it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import DestinationBusyError
from endor_jax.store.digest import digest_bytes
from endor_jax.store.journal import Journal, peek, read_lines, to_line

ENTRIES = st.lists(
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.floats(allow_nan=False))),
    min_size=1,
    max_size=5,
)


def written(entries: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name))
        journal.start(entries[0])
        for entry in entries[1:]:
            journal.add(entry)
        journal.close()
        return (Path(name) / "endor.journal").read_bytes()


@given(ENTRIES, st.data())
def test_a_cut_leaves_the_lines_before_it(entries: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = written(entries)
    assert read_lines(whole) == (entries, len(whole))
    left = whole[: data.draw(st.integers(0, len(whole)))]
    lines, count = read_lines(left)
    assert lines == entries[: left.count(b"\n")]
    assert left[:count].count(b"\n") == len(lines)


@given(ENTRIES, st.data())
def test_a_damaged_line_and_all_after_it_do_not_count(
    entries: list[dict[str, Any]], data: st.DataObject
) -> None:
    whole = bytearray(written(entries))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    lines, _ = read_lines(bytes(whole))
    assert lines == entries[: bytes(written(entries)[:place]).count(b"\n")]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_a_crash(data: bytes) -> None:
    assert read_lines(data) == ([], 0)


NO_OBJECTS = st.sampled_from(
    [b"", b"{", b"[1]", b"5", b"null", b'"{}"', b"\xff", b"[" * 100_000, b"9" * 5000]
)


@given(ENTRIES, NO_OBJECTS | st.binary(max_size=20).filter(lambda text: b"\n" not in text), ENTRIES)
def test_a_right_digest_of_no_json_object_ends_it(
    before: list[dict[str, Any]], text: bytes, after: list[dict[str, Any]]
) -> None:
    whole = b"".join(map(to_line, before))
    crafted = whole + digest_bytes(text).encode() + b" " + text + b"\n" + b"".join(map(to_line, after))
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        assert read_lines(crafted) == (before, len(whole))


def test_it_is_opened_again_behind_its_last_whole_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start({"a": 1})
    journal.add({"b": 2})
    journal.close()
    with (tmp_path / "endor.journal").open("ab") as file:
        file.write(b"0123456789abcdef {torn")
    again = Journal(tmp_path)
    assert (again.header, again.entries) == ({"a": 1}, ({"b": 2},))
    again.add({"c": 3})
    again.close()
    again.close()
    assert not again.locked
    assert read_lines((tmp_path / "endor.journal").read_bytes())[0] == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_looking_at_it_changes_nothing_and_tells_of_a_writer(tmp_path: Path) -> None:
    assert peek(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    journal = Journal(tmp_path)
    journal.start({"a": 1})
    with pytest.raises(DestinationBusyError, match="another process writing there"):
        peek(tmp_path)
    journal.close()
    assert peek(tmp_path) == {"a": 1}
    assert peek(tmp_path / "endor.journal") is None
