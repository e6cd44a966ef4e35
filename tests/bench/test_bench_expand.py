"""`endor bench expand`: what is timed is right, the record follows from samples, the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from endor_jax import native
from endor_jax.arrays import bits_of
from endor_jax.bench import bandwidth
from endor_jax.bench import expand as suite
from endor_jax.bench.bandwidth import memory_contenders
from endor_jax.bench.environment import Environment
from endor_jax.bench.expand import ExpandCase, ExpandRecord, ExpandSettings, expand_case, measure_expand
from endor_jax.bench.matrices import (
    CACHES,
    copies,
    copies_beyond,
    parse_shape,
    pruned_weights,
    shape_name,
    sparse_copies,
    stored_bytes,
)
from endor_jax.bench.peers import numpy_expand
from endor_jax.bench.race import Timing
from endor_jax.cli.main import app
from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.format.encode import encode_array

CACHE = 1 << 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a cache of 64 KiB."""
    monkeypatch.setattr(suite, "last_level_cache_bytes", lambda: CACHE)
    monkeypatch.setattr(bandwidth, "BLOCK_BYTES", 1 << 18)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_every_row_is_pruned_exactly(sparsity: float):
    weights = pruned_weights((30, 64), sparsity=sparsity, dtype="bfloat16")
    assert (np.count_nonzero(bits_of(weights) == 0, axis=1) == 64 * sparsity).all()
    assert (
        bits_of(weights).tobytes()
        == bits_of(pruned_weights((30, 64), sparsity=sparsity, dtype="bfloat16")).tobytes()
    )


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="dtype: got 'int8', expected bfloat16"):
        pruned_weights((2, 2), sparsity=0.5, dtype="int8")
    with pytest.raises(InvalidInputError, match=r"sparsity 1\.0"):
        pruned_weights((2, 2), sparsity=1.0, dtype="bfloat16")


def test_shapes_are_outputs_by_inputs():
    assert parse_shape("4096x11008") == parse_shape("4096×11008") == (4096, 11008)
    assert shape_name((4096, 11008)) == "4096x11008"
    for wrong in ("4096", "4x0", "axb", "1x2x3", "-1x2", ""):
        with pytest.raises(OptionError, match=r"shape: got .* expected outputs x inputs"):
            parse_shape(wrong)


def test_copies_are_memory_of_their_own_beyond_the_cache():
    assert copies_beyond(100, 1000) == 2
    made = copies(np.arange(1000, dtype=np.uint32), 10_000)
    assert len(made) * 4000 >= CACHES * 10_000 > (len(made) - 1) * 4000
    assert len({array.unsafe_buffer_pointer() for array in made}) == len(made)
    tensor = encode_array(pruned_weights((8, 64), sparsity=0.5, dtype="bfloat16"), "raw")
    assert all(stored_bytes(copy) == stored_bytes(tensor) for copy in sparse_copies(tensor, 1000))


def test_memory_is_copied_and_read_to_the_last_byte():
    contenders = memory_contenders(threads=2, cache_bytes=1, copying=True)
    assert {"read", "memcpy"} <= {contender.name for contender in contenders}
    for contender in contenders:
        assert contender.bytes == bandwidth.BLOCK_BYTES
        assert contender.matrices * contender.bytes >= CACHES
    names = {contender.name for contender in memory_contenders(threads=1, cache_bytes=1, copying=False)}
    assert not any("memcpy" in name for name in names)
    source, target = np.arange(99, dtype=np.uint8), np.zeros(99, np.uint8)
    bandwidth._copy((source, target))
    assert (source == target).all()


@pytest.mark.parametrize("codec", ["raw", "dense-raw", "packed:2", "dense-packed:3"])
@pytest.mark.parametrize("shape", [(5, 32), (3, 1100)])
def test_every_contender_gives_the_dense_array(codec: str, shape: tuple[int, int]):
    weights = pruned_weights(shape, sparsity=0.5, dtype="bfloat16")
    weights[0, 0] = 1e30  # an escape
    tensor = encode_array(weights, codec)
    out = np.ones_like(weights)
    numpy_expand(tensor, out)
    assert (bits_of(out) == bits_of(weights)).all()
    tensors = sparse_copies(tensor, CACHES)
    sets = native.instruction_sets() if native.available() else ()
    assert [contender.name for contender in suite.jax_contenders(tensors, cache_bytes=1)] == [
        *(f"ours {name}" for name in sets),
        "xla",
    ]
    for way in [*map(suite._forced, sets), suite.xla.expand]:
        outputs = [jnp.ones(shape, jnp.bfloat16) for _ in range(2)]
        held = {array.unsafe_buffer_pointer() for array in outputs}
        contender = suite._jax_contender("x", way, tensors, outputs)
        for turn in range(3):
            contender.call(turn % contender.matrices)
        assert {array.unsafe_buffer_pointer() for array in outputs} == held  # no fresh memory
        assert all((bits_of(np.asarray(array)) == bits_of(weights)).all() for array in outputs)


def test_a_case_has_every_contender_and_ratios_to_memcpy(small: None):
    settings = ExpandSettings(seconds=0.0)
    one, two = (expand_case(settings, (64, 256), "raw", threads) for threads in (1, 2))
    names = [timing.contender for timing in one.timings]
    assert {"read", "memcpy", "xla", "numpy"} <= set(names)
    assert [timing.contender for timing in two.timings] == names[:-1]  # NumPy has one thread
    assert one.dense_bytes == 64 * 256 * 2
    assert one.stored_bytes < one.dense_bytes
    xla = next(timing for timing in one.to_json()["timings"] if timing["contender"] == "xla")
    assert xla["matrices"] * one.stored_bytes >= CACHES * CACHE
    assert xla["memcpy_ratio"] == xla["bytes_per_second"] / one.memcpy_bytes_per_second


def test_the_limit_is_that_of_bytes_moved_as_fast_as_memcpy_moves_them():
    timings = (Timing("memcpy", 1000, 2, 1.0, (1.0,)), Timing("xla", 500, 2, 1.0, (2.0,)))
    case = ExpandCase((1, 250), "raw", 1, 500, 300, timings)
    assert case.memcpy_bytes_per_second == 1000.0
    # 800 bytes moved at 2000 a second: 0.4 s for 500 dense ones.
    assert case.limit_bytes_per_second == pytest.approx(500 / 0.4)
    values = ExpandRecord(ExpandSettings(shapes=((1, 250),)), (case,), Environment(None, {}, {})).to_json()
    assert values["benchmark"] == "expand"
    assert values["settings"]["shapes"] == ["1x250"]
    assert values["cases"][0]["timings"][1]["memcpy_ratio"] == 0.25
    assert {"commit", "versions", "machine"} <= values.keys()
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(values, indent=1))


def test_what_cannot_be_measured_is_refused_before_anything_is():
    with pytest.raises(OptionError, match="value codec: got 'zip'"):
        measure_expand(ExpandSettings(codecs=("raw", "zip")))
    with pytest.raises(OptionError, match="threads: got 4096"):
        measure_expand(ExpandSettings(threads=(4096,)))


def test_the_command_measures_in_one_process_per_number_of_threads(tmp_path: Path):
    record = tmp_path / "made" / "record.json"
    options = ["--shape", "512x1024", "--codec", "packed:2", "--threads", "1", "--seconds", "0"]
    done = CliRunner().invoke(app, ["bench", "expand", *options, "--record", str(record)])
    assert done.exit_code == 0, done.output
    assert "expand 512x1024, packed:2, 1 thread(s)" in done.stdout
    assert "of memcpy" in done.stdout
    values = json.loads(record.read_text())
    (case,) = values["cases"]
    assert (case["shape"], case["codec"], case["threads"]) == ("512x1024", "packed:2", 1)
    assert values["settings"]["threads"] == [1]
    assert all(len(timing["seconds"]) >= 3 for timing in case["timings"])
    assert all(timing["median_seconds"] > 0 for timing in case["timings"])
