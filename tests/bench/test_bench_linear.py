"""`endor bench linear`: contenders compute the same product; ratios and crossovers follow from samples."""

from __future__ import annotations

import importlib.util
import json
from contextlib import nullcontext

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from endor_jax import native
from endor_jax.bench import bandwidth, peers
from endor_jax.bench import linear as suite
from endor_jax.bench.environment import Environment
from endor_jax.bench.linear import LinearCase, LinearRecord, LinearSettings, linear_cases
from endor_jax.bench.matrices import copies, pruned_weights, sparse_copies
from endor_jax.bench.race import Timing
from endor_jax.cli.bench.linear import linear_tables
from endor_jax.cli.console import Output
from endor_jax.cli.main import app
from endor_jax.errors import MissingDependencyError
from endor_jax.format.encode import encode_array

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a cache of 4 KiB."""
    monkeypatch.setattr(suite, "last_level_cache_bytes", lambda: 1 << 12)
    monkeypatch.setattr(bandwidth, "BLOCK_BYTES", 1 << 16)


def test_every_contender_computes_the_same_product():
    weights = pruned_weights((40, 96), sparsity=0.5, dtype="bfloat16")
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(ml_dtypes.bfloat16)
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    held = {name: copies(weights.astype(name), 100) for name in ("bfloat16", "float32")}
    ours = suite.our_products(jnp.asarray(x), sparse_copies(encode_array(weights, "packed:2"), 100))
    dense = suite.dense_products(jnp.asarray(x), held, threads=1)
    sets = native.instruction_sets() if native.available() else ()
    assert len(ours) == (len(sets) + 2 if sets else 1)
    assert len(dense) == (4 if TORCH else 2)
    for contender in (*ours, *dense):
        for index in range(contender.matrices):
            result = contender.call(index)
            got = np.asarray(result.float() if "torch" in contender.name else result)  # type: ignore[attr-defined]
            np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0.01, atol=0.02)


def test_bytes_are_those_of_the_weights_as_they_are_read(small: None):
    (case,) = linear_cases(LinearSettings(rows=(2,), seconds=0.0), (64, 128), 1)
    sizes = {timing.contender: timing.bytes for timing in case.timings}
    assert sizes["xla bfloat16"] == 64 * 128 * 2
    assert sizes["xla float32"] == 64 * 128 * 4
    assert sizes["ours expanded by xla"] == case.stored_bytes
    assert case.weights == 64 * 128


def test_without_torch_xla_is_the_only_peer(small: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suite, "installed", lambda name: False)
    (case,) = linear_cases(LinearSettings(rows=(1,), seconds=0.0), (64, 128), 1)
    assert not any(timing.contender.startswith("torch") for timing in case.timings)
    monkeypatch.setattr(peers, "installed", lambda name: False)
    with pytest.raises(MissingDependencyError, match=r"bench: got no torch, expected torch; pip install"):
        peers.torch_product(jnp.ones((1, 1)), [], threads=1)


def case_of(rows: int, **seconds: float) -> LinearCase:
    """A case in which each contender took so long; _ stands for a space."""
    timings = [Timing("read", 100, 2, 0.0, (1.0,))]
    timings += [Timing(name.replace("_", " "), 10, 2, 0.0, (took,)) for name, took in seconds.items()]
    return LinearCase((5, 20), rows, 2, 10, tuple(timings))


def test_ratios_are_to_the_fastest_dense_peer():
    case = case_of(1, ours_fused_avx2=2.0, ours_expanded=1.0, xla_float32=8.0, torch_bfloat16=4.0)
    values = {timing["contender"]: timing for timing in case.to_json()["timings"]}
    assert values["ours fused avx2"]["dense_peer_ratio"] == 2.0
    assert values["xla float32"]["dense_peer_ratio"] == 0.5
    assert values["ours fused avx2"]["weights_per_second"] == 50.0
    assert "dense_peer_ratio" not in values["read"]
    assert case.limit_weights_per_second == 100 * 100 / 10


def test_the_crossover_is_the_first_number_of_rows_that_is_lost():
    cases = (
        case_of(4, ours_fused_a=9.0, ours_fused_b=5.0, ours_expanded=6.0, xla_float32=4.0),
        case_of(1, ours_fused_a=1.0, ours_fused_b=5.0, ours_expanded=6.0, xla_float32=4.0),
        case_of(8, ours_fused_a=9.0, ours_fused_b=9.0, ours_expanded=6.0, xla_float32=9.5),
    )
    record = LinearRecord(LinearSettings(shapes=((5, 20),)), cases, Environment(None, {}, {}))
    (crossover,) = record.crossovers
    assert (crossover.of_ours, crossover.of_all) == (8, 4)
    values = json.loads(json.dumps(record.to_json()))
    assert values["crossovers"] == [{"shape": "5x20", "threads": 2, "of_ours": 8, "of_all": 4}]
    assert [case["rows"] for case in values["cases"]] == [4, 1, 8]
    always = LinearRecord(record.settings, cases[1:2], record.environment)
    assert (always.crossovers[0].of_ours, always.crossovers[0].of_all) == (None, None)
    assert LinearRecord(record.settings, (case_of(1, xla_float32=1.0),), record.environment).crossovers == ()


def test_tables_show_rates_ratios_and_crossovers(capsys: pytest.CaptureFixture[str]):
    cases = (case_of(1, ours_fused_avx2=2.0, xla_float32=8.0),)
    for table in linear_tables(LinearRecord(LinearSettings(), cases, Environment(None, {}, {}))):
        Output(as_json=False, quiet=False, verbose=False).results.print(table)
    printed = capsys.readouterr().out
    assert "linear 5x20, 1 row(s) of x, 2 thread(s)" in printed
    assert "ours fused avx2" in printed
    assert "4.00" in printed
    assert "rows of x from which another is faster than fused" in printed


def test_the_command_measures_and_says_which_peer_is_missing(small: None, monkeypatch: pytest.MonkeyPatch):
    for module in (peers, suite):
        monkeypatch.setattr(module, "installed", lambda name: False)
    monkeypatch.setattr(suite, "process_of", nullcontext)
    monkeypatch.setattr(suite, "run", lambda process, job, *arguments: job(*arguments))
    options = ["--shape", "64x128", "--rows", "1", "--threads", "1", "--seconds", "0", "--json"]
    done = CliRunner().invoke(app, ["bench", "linear", *options])
    assert done.exit_code == 0, done.output
    assert "no torch: not measured" in done.stderr
    values = json.loads(done.stdout)
    assert values["benchmark"] == "linear"
    assert [case["rows"] for case in values["cases"]] == [1]
    assert values["machine"]["caches"] is not None
