"""Part readers under random and damaged words: no crash, no hang, nothing accepted that no encoder writes.

ENDOR_TEST_FUZZ says how many cases of each kind.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.arrays import dtype_from_name
from endor_jax.format.check import check_part
from endor_jax.format.decode import decode, decode_rows
from endor_jax.format.encode import encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, RecordLayout, TensorSpec, plan_layout
from endor_jax.format.tensor import SparseTensor
from tests.format.integers import quantised_of
from tests.strategies import CODECS, INTEGER_CODECS

FUZZ = int(os.environ.get("ENDOR_TEST_FUZZ", "300"))
SHAPES = ((1, 1), (3, 31), (2, 3, 33), (2, 64), (1, 1025), (2, 1100))
RECORDS = 48

seeds = st.integers(0, 2**63)


@cache
def record(number: int) -> tuple[RecordLayout, tuple[np.ndarray, ...]]:
    """One of RECORDS layouts with its parts: every codec of every dtype occurs."""
    random = np.random.default_rng(number)
    specs, arrays = {}, {}
    for i in range(1 + number % 3):
        dtype = sorted(CODECS)[(number + i) % 3]
        every = CODECS[dtype] + INTEGER_CODECS
        codec = every[(number // 3 + 5 * i) % len(every)]
        shape = SHAPES[random.integers(len(SHAPES))]
        array = (random.normal(size=shape) * 10.0 ** random.integers(-3, 3)).astype(dtype_from_name(dtype))
        array[random.random(shape) < random.choice([0, 0.5, 0.95])] = 0
        special = random.choice([np.inf, -0.0, np.nan])
        array[random.random(shape) < 0.02] = 0 if codec.quantised else special
        specs[f"w{i}"], arrays[f"w{i}"] = TensorSpec(shape, dtype, codec), array
    if number % 4 == 0:
        specs["b"], arrays["b"] = TensorSpec((number % 7,), "float16", None), np.ones(number % 7, np.float16)
    layout = plan_layout(specs, parts=1 + number % 2)
    encoded = encode_record(layout, arrays)
    return with_escapes(layout, dict.fromkeys(specs, 0) | encoded.escapes), encoded.parts


def damage(words: np.ndarray, layout: RecordLayout, random: np.random.Generator) -> np.ndarray:
    """The words with something done to them."""
    words = words.copy()
    extremes = np.array([0, 1, 2**31, 2**32 - 1, words.shape[0], 32 * words.shape[0] - 1], np.uint32)
    match random.integers(7):
        case 0:  # nothing is left
            words[:] = random.integers(0, 2**32, words.shape[0], dtype=np.uint32)
        case 1:
            words[: layout.streams_start] = random.integers(0, 2**32, layout.streams_start, dtype=np.uint32)
        case 2:  # the header, the only positions that are followed
            header = 2 * sum(isinstance(t, FieldLayout) for _, t in layout.tensors)
            words[:header] = random.choice(extremes, header)
        case 3:
            words[random.integers(0, words.shape[0], 3)] = random.choice(extremes, 3)
        case 4:
            words = np.resize(words, random.integers(layout.streams_start + 1, words.shape[0] + 99))
        case 5:
            at, length = random.integers(0, words.shape[0], 2)
            words[at : at + length] = np.roll(words[at : at + length], random.integers(1, 9))
        case _:
            at = random.integers(0, words.shape[0], random.integers(1, 4))
            words[at] ^= np.uint32(1) << random.integers(0, 32, at.shape[0], dtype=np.uint32)
    return words


@settings(max_examples=FUZZ)
@given(st.integers(0, RECORDS - 1), seeds)
def test_damaged_words(number: int, seed: int) -> None:
    """Decoding gives arrays of the right shape whatever the words are; and what `check_part` lets through is
    what an encoder writes for some weights, word for word (with other bases, if it has others)."""
    layout, parts = record(number)
    random = np.random.default_rng(seed)
    index = int(random.integers(len(parts)))
    words = damage(parts[index], layout, random)
    passed = not check_part(words, layout, part=index).violations
    if words.shape[0] != parts[index].shape[0]:
        assert not passed
    for _, tensor in layout.tensors:
        if isinstance(tensor, FieldLayout):
            rows = decode_rows(words, tensor, np.arange(tensor.rows))
            assert rows.shape == (tensor.rows, tensor.columns)
        else:
            assert decode(SparseTensor((words,), tensor)).shape == tensor.shape
    if passed:
        assert_canonical(layout, tuple(words if i == index else p for i, p in enumerate(parts)), index)


def assert_canonical(layout: RecordLayout, parts: tuple[np.ndarray, ...], index: int) -> None:
    arrays = {name: decode(SparseTensor((parts[index],), t)) for name, t in layout.tensors if "b" in name}
    arrays |= {
        name: quantised_of(parts, t) if t.codec.quantised else decode(SparseTensor(parts, t))
        for name, t in layout.tensors
        if isinstance(t, FieldLayout)
    }
    again = encode_record(layout, arrays).parts[index]
    sections = [t.bases for _, t in layout.tensors if isinstance(t, FieldLayout) and t.bases is not None]
    if all(np.array_equal(again[s.start : s.stop], parts[index][s.start : s.stop]) for s in sections):
        assert np.array_equal(again, parts[index])


@pytest.mark.parametrize("number", range(RECORDS))
def test_the_undamaged_ones_pass(number: int) -> None:
    layout, parts = record(number)
    for index, words in enumerate(parts):
        assert check_part(words, layout, part=index).violations == ()
        assert_canonical(layout, parts, index)
