"""Which layers each pipeline stage has: successive ranges, as even as stored bytes allow."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError
from endor_jax.generate.placement import head_record, pass_records
from endor_jax.generate.stages import layer_ranges, stages_of
from endor_jax.store.manifest import read_manifest
from endor_jax.streaming.share import WHOLE
from tests.generate.budgets import described


def sizes_of(layers: list[int], ranges: tuple[range, ...], head: int) -> list[int]:
    sizes = [sum(layers[i] for i in own) for own in ranges]
    return [*sizes[:-1], sizes[-1] + head]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(0, 80), st.data())
def test_no_split_has_a_smaller_largest_stage(layers, head, data):
    count = data.draw(st.integers(1, min(len(layers), 4)))
    ranges = layer_ranges(layers, count, head_bytes=head)
    assert [i for own in ranges for i in own] == list(range(len(layers)))
    assert all(ranges)
    own = sizes_of(layers, ranges, head)
    others = [
        sizes_of(layers, tuple(map(range, (0, *cuts), (*cuts, len(layers)))), head)
        for cuts in itertools.combinations(range(1, len(layers)), count - 1)
    ]
    assert max(own) == min(map(max, others))
    even = [sum(size**2 for size in other) for other in others if max(other) == max(own)]
    assert sum(size**2 for size in own) == min(even)


def test_equal_layers_are_split_evenly_and_a_large_head_takes_the_place_of_layers():
    assert layer_ranges([5] * 6, 3) == (range(2), range(2, 4), range(4, 6))
    assert layer_ranges([5] * 6, 3, head_bytes=10) == (range(2), range(2, 5), range(5, 6))
    assert layer_ranges([5] * 2, 2, head_bytes=1000) == (range(1), range(1, 2))


def test_stages_have_every_record_of_a_pass_once(checkpoint: Path):
    manifest = read_manifest(checkpoint)
    stages = stages_of(manifest, 3, head=head_record(manifest))
    assert [(stage.first, stage.last) for stage in stages] == [(True, False), (False, False), (False, True)]
    records = [record for stage in stages for record in pass_records(manifest, WHOLE, stage)]
    assert records == pass_records(manifest)


def test_fewer_layers_than_stages_are_refused(llama: Path):
    manifest, shape = described(llama, 128)
    layers = shape.config.layers
    with pytest.raises(InvalidInputError, match=f"got {layers + 1} pipeline stages, expected 1 to {layers}"):
        stages_of(manifest, layers + 1, head=head_record(manifest))
