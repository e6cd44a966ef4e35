"""Records cut for several devices: how many parts, what they hold, and that no bit is another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import bits_of
from endor_jax.conversion.layouts import UNCOMPRESSED, record_layouts, tree_layouts
from endor_jax.conversion.pipeline import survey_conversion
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import OptionError
from endor_jax.format.layout import DenseLayout, FieldLayout, TensorSpec
from endor_jax.format.values import Codec
from endor_jax.store.manifest import Manifest
from endor_jax.store.verify import verify
from tests.tiny_models import LLAMA, OPT, OPT_350M, write_tiny

UNTIED = LLAMA | {"tie_word_embeddings": False, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LLAMA | {"num_hidden_layers": 2},
    "untied": UNTIED | {"num_hidden_layers": 1},
    "opt": OPT | {"num_hidden_layers": 1},
    "opt-350m": OPT_350M | {"num_hidden_layers": 1},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "source", UNTIED)


def assert_same_tensors(path: Path, other: Path) -> None:
    """Every tensor of two checkpoints has the same bits and dtype."""
    with endor.open(path) as one, endor.open(other) as two:
        assert [r.name for r in one.manifest.records] == [r.name for r in two.manifest.records]
        for record in one.manifest.records:
            assert (
                one.manifest.layout(record).names
                == two.manifest.layout(two.manifest.record(record.name)).names
            )
            for name in one.manifest.layout(record).names:
                got, expected = two.read_tensor(record.name, name), one.read_tensor(record.name, name)
                assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
                np.testing.assert_array_equal(bits_of(got), bits_of(expected))


def assert_cut(manifest: Manifest, shards: int) -> None:
    """Every record has a multiple of so many parts, and none of its float matrices is in all of them."""
    assert manifest.shards % shards == 0
    for record in manifest.records:
        assert len(record.parts) % shards == 0
        for _, tensor in manifest.layout(record).tensors:
            assert isinstance(tensor, FieldLayout if len(tensor.shape) > 1 else DenseLayout)


@pytest.mark.parametrize(
    ("name", "shards", "settings"),
    [
        ("llama", 2, {"dtype": "bfloat16", "prune": "magnitude", "sparsity": 0.5}),
        ("llama", 4, {"values": "int8"}),
        ("untied", 3, {"values": "packed", "dtype": "float16"}),
        ("untied", 7, {"values": "int4", "prune": "magnitude", "sparsity": 0.5}),
        ("opt", 4, {}),
        ("opt", 16, {"values": "raw"}),
        ("opt-350m", 5, {"dtype": "bfloat16"}),
    ],
)
def test_every_record_is_cut_and_every_bit_is_there(tmp_path, name, shards, settings):
    source = write_tiny(tmp_path / "source", CONFIGS[name])
    whole = endor.convert(source, tmp_path / "whole", **settings).manifest
    assert whole.shards == 1
    cut = endor.convert(source, tmp_path / "cut", shards=shards, **settings).manifest
    assert_cut(cut, shards)
    assert verify(tmp_path / "cut").problems == ()
    assert_same_tensors(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("shards", "whole"), [(2, True), (4, False)])
def test_parts_hold_whole_heads_where_they_divide_them(source, tmp_path, shards, whole):
    manifest = endor.convert(source, tmp_path / "dst", shards=shards).manifest
    layout = manifest.layout(manifest.record("layers.0"))
    head = UNTIED["hidden_size"] // UNTIED["num_attention_heads"]
    keys, queries = layout["attention.key.weight"], layout["attention.query.weight"]
    assert isinstance(keys, FieldLayout)
    assert isinstance(queries, FieldLayout)
    assert queries.rows == UNTIED["num_attention_heads"] * head // shards
    assert queries.rows % head == 0
    assert keys.rows == UNTIED["num_key_value_heads"] * head // shards
    assert (keys.rows % head == 0) == whole


def test_a_dry_run_comes_close(source, tmp_path):
    settings = ConvertSettings(shards=4, dtype="bfloat16")
    expected = survey_conversion(source, tmp_path / "dst", settings=settings).expected
    real = endor.convert(source, tmp_path / "dst", shards=4, dtype="bfloat16").manifest
    assert expected.shards == real.shards == 4
    assert expected.stored_bytes == pytest.approx(real.stored_bytes, rel=0.1)


def test_more_shards_than_rows_are_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(OptionError, match=r"shards: got 65, expected at most 64: the smallest matrix worth"):
        endor.convert(source, tmp_path / "dst", shards=65)
    assert not (tmp_path / "dst").exists()


def test_what_is_needed_anyway_is_rounded_up():
    # 2^30 elements of 17 bits: more than four parts can hold.
    specs = {"layers.0": {"w": TensorSpec((2**15, 2**15), "bfloat16", Codec("raw"))}}
    fewest = tree_layouts(specs)["layers.0"].parts
    assert fewest == 5
    assert tree_layouts(specs, shards=3)["layers.0"].parts == 6
    assert tree_layouts(specs, shards=5)["layers.0"].parts == 5


def test_what_cannot_be_cut_stays_in_every_part():
    specs = {
        "layers.0": {
            "w": TensorSpec((80, 64), "float32", None),
            "small": TensorSpec((1, 3), "float16", None),
            "vector": TensorSpec((5000,), "float32", None),
            "integers": TensorSpec((80, 64), "int8", None),
            "empty": TensorSpec((0, 64), "float32", None),
        }
    }
    one, two = (tree_layouts(specs, shards=shards)["layers.0"] for shards in (1, 2))
    assert all(isinstance(tensor, DenseLayout) for _, tensor in one.tensors)
    fields = {name: tensor.codec for name, tensor in two.tensors if isinstance(tensor, FieldLayout)}
    assert fields == {"w": UNCOMPRESSED, "small": UNCOMPRESSED}
    assert two.parts == 2
    with pytest.raises(OptionError, match=r"shards: got 2, expected at most 1"):
        tree_layouts({"layers.0": {"vector": TensorSpec((5000,), "float32", None)}}, shards=2)


def test_blocks_of_the_vocabulary_are_no_larger_than_a_part_of_a_layer():
    matrix = TensorSpec((4096, 4096), "bfloat16", Codec("packed", 2))
    table = {"weight": TensorSpec((128_000, 4096), "bfloat16", None)}
    specs = {"embedding": table, "layers.0": {"up": matrix, "down": matrix}, "head": table}
    bits = {"packed": 10, "raw": 16}
    for shards in (1, 3, 4):
        layouts = record_layouts(specs, shards=shards)
        assert layouts["layers.0"].parts == shards
        for name in ("embedding", "head"):
            weight = layouts[name]["weight"]
            assert isinstance(weight, FieldLayout)
            assert layouts[name].parts % shards == 0
            assert weight.rows * 4096 * bits["raw"] <= 2 * 4096**2 * bits["packed"] / shards
            assert weight.rows * 4096 <= 4096**2
