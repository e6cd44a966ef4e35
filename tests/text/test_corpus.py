"""Corpora are read whole or refused with what is wrong; blocks of one are the same for the same seed."""

import json
import re

import numpy as np
import pytest

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus


def test_the_default_is_there_and_long_enough_for_64_blocks_and_80_others():
    text = read_corpus()
    assert len(text) > 400_000
    assert "assert" in text


def test_a_text_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text('{"text": "Grüße"}\n')
    assert read_corpus(str(path)) == '{"text": "Grüße"}\n'


def test_a_jsonl_file_gives_the_texts_of_its_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    entries = [{"text": "one\u2028still one"}, {"content": "two", "other": 1}, "three"]
    path.write_text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n\n")
    assert read_corpus(str(path)) == "one\u2028still one\n\ntwo\n\nthree"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 .* no JSON"),
        ('{"body": "x"}', "line 2 .* an object with 'body'"),
        ('{"text": 3}', "line 2 .* an object with 'text'"),
        ("[1]", "line 2 .* list"),
    ],
)
def test_a_jsonl_line_without_text_is_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text('"fine"\n' + line + "\n")
    with pytest.raises(InvalidInputError, match=re.compile(said, re.DOTALL)):
        read_corpus(str(path))


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_corpus(str(tmp_path / "missing.txt"))
    with pytest.raises(InvalidInputError, match="a directory"):
        read_corpus(str(tmp_path))
    for name, data, said in (
        ("b.txt", b"\xff\xfe", "UTF-8"),
        ("c.txt", b" \n", "nothing"),
        ("d.jsonl", b"", "nothing"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInputError, match=said):
            read_corpus(str(tmp_path / name))


def test_blocks_of_one_seed_are_disjoint_ranges_of_one_shuffle():
    ids = range(1000)
    both = shuffled_blocks(ids, 7, seed=3)
    assert both.shape == (142, 7)
    assert both.dtype == np.int32
    assert sorted(both[:, 0]) == list(range(0, 994, 7))
    np.testing.assert_array_equal(both[:, 1:] - both[:, :-1], 1)
    parts = [shuffled_blocks(ids, 7, seed=3, first=0, count=100), shuffled_blocks(ids, 7, seed=3, first=100)]
    np.testing.assert_array_equal(np.concatenate(parts), both)
    assert (shuffled_blocks(ids, 7, seed=4) != both).any()


def test_too_short_a_text_for_the_blocks_asked_for_is_refused():
    with pytest.raises(InvalidInputError, match="142 blocks of 7"):
        shuffled_blocks(range(1000), 7, seed=0, first=64, count=100)
    with pytest.raises(InvalidInputError, match="0 blocks"):
        shuffled_blocks(range(6), 7, seed=0)
