"""`endor bench expand|linear` on a device: figures follow from samples, wrong results are seen, all is kept.

Here the device is the CPU, with XLA's implementation and small matrices; the same code runs on a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from typer.testing import CliRunner

from endor_jax.bench import device, device_copy, device_expand, device_grid, device_linear, device_timing
from endor_jax.bench.device import DeviceFacts
from endor_jax.bench.device_cells import Failure
from endor_jax.bench.device_expand import (
    DeviceExpandCase,
    DeviceExpandRecord,
    DeviceExpandSettings,
    measure_device_expand,
)
from endor_jax.bench.device_grid import ExpandCell, LinearCell
from endor_jax.bench.device_linear import (
    DENSE,
    EXPANDED,
    LINEAR,
    DeviceLinearCase,
    DeviceLinearRecord,
    DeviceLinearSettings,
    measure_device_linear,
)
from endor_jax.bench.device_timing import DeviceTiming
from endor_jax.bench.environment import Environment
from endor_jax.bench.matrices import stored_bytes
from endor_jax.cli.bench.device import device_expand_table, device_linear_table
from endor_jax.cli.main import app
from endor_jax.errors import OptionError
from endor_jax.kernels import place
from endor_jax.kernels.backends import Place
from tests.lowering import cuda_lowered, large_operations

NOWHERE = Environment(None, {}, {})
FACTS = DeviceFacts("gpu", "NVIDIA H200", "9.0", "cuda", None, 60 * 2**20, "CUDA")
CACHE = 1 << 11
drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib (pip install 'endor_jax[plot]')"
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a cache of 2 KiB, and programs that need not move much."""
    monkeypatch.setattr(device, "_cache", lambda platform, ordinal: (CACHE, "test"))
    monkeypatch.setattr(device_timing, "PROGRAM_BYTES", 1)
    monkeypatch.setattr(device_copy, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(device_timing, "ROUNDS", 2)
    monkeypatch.setattr(device_timing, "LEAST_ROUNDS", 1)


@pytest.fixture
def as_on_a_device(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_a_device", lambda: True)


def timing(name: str, size: int, seconds: float, issue: float = 0.0) -> DeviceTiming:
    return DeviceTiming(name, size, 2, 1.0, (seconds, 1.1 * seconds, 0.9 * seconds), 3, (issue,) * 3)


def expand_case(codec: str = "raw", sparsity: float = 0.5, **exact: bool) -> DeviceExpandCase:
    timings = [timing("copy", 800, 1.0), timing("copy by a kernel", 800, 0.5)]
    timings += [timing(name, 1000, seconds) for name, seconds in (("triton", 1.0), ("xla", 4.0))]
    cell = ExpandCell((8, 64), codec, sparsity)
    return DeviceExpandCase(cell, 600, 400, tuple(timings), exact or {"triton": True, "xla": True}, ())


def expand_record(*cases: DeviceExpandCase, **changes: Any) -> DeviceExpandRecord:
    settings = DeviceExpandSettings(
        tuple(case.cell for case in cases), implementations=("triton", "xla"), seconds=0.1
    )
    return replace(DeviceExpandRecord(settings, cases, (), FACTS, NOWHERE), **changes)


def linear_case(rows: int = 1, sparsity: float = 0.5, **changes: Any) -> DeviceLinearCase:
    timings = [timing("copy", 800, 1.0), timing(LINEAR, 500, 2.0), timing(EXPANDED, 500, 5.0)]
    timings.append(timing(DENSE, 1000, 4.0, issue=3.9))
    errors = {LINEAR: 0.001, EXPANDED: 0.002, DENSE: 0.003}
    cell = LinearCell((8, 64), "raw", sparsity, rows)
    return replace(DeviceLinearCase(cell, 400, 500, tuple(timings), errors, ()), **changes)


def linear_record(*cases: DeviceLinearCase, **changes: Any) -> DeviceLinearRecord:
    settings = DeviceLinearSettings(tuple(case.cell for case in cases), implementation="triton")
    return replace(DeviceLinearRecord(settings, cases, (), FACTS, NOWHERE), **changes)


def test_expand_is_a_share_of_the_faster_copy():
    case = expand_case()
    assert case.copy_bytes_per_second == 1600.0
    assert case.share(case.timings[2]) == pytest.approx(1000 / 1600)
    values = expand_record(case).to_json()
    assert values["benchmark"] == "device expand"
    assert values["cases"][0]["cell"] == {"shape": "8x64", "codec": "raw", "sparsity": 0.5}
    assert [each["copy_share"] for each in values["cases"][0]["timings"]] == [0.5, 1.0, 0.625, 0.15625]
    assert len(values["cases"][0]["timings"][0]["seconds"]) == 3
    assert values["device"]["kind"] == "NVIDIA H200"
    assert {"commit", "versions", "machine", "left_out", "faults"} <= values.keys()
    json.dumps(values)


def test_linear_is_rated_by_the_dense_time_and_the_limit_by_the_copy():
    case = linear_case()
    ratios = [case.ratio(each) for each in case.timings[1:]]
    assert ratios == pytest.approx([2.0, 0.8, 1.0])
    assert case.limit_ratio == pytest.approx(4.0 * 800 / 500)  # 500 bytes take 0.625 seconds at best
    values = linear_record(case).to_json()
    assert values["cases"][0]["limit_ratio"] == pytest.approx(6.4)
    assert values["cases"][0]["timings"][1]["dense_ratio"] == pytest.approx(2.0)
    json.dumps(values)
    without = replace(case, timings=case.timings[:3])
    assert (without.limit_ratio, without.ratio(case.timings[1])) == (None, None)
    json.dumps(linear_record(without).to_json())


def test_faults_are_what_failed_and_what_is_wrong():
    failed = replace(expand_case(triton=True, xla=False), failures=(Failure("mosaic", "no"),))
    assert expand_record(failed, expand_case()).faults == (
        "expand 8x64 raw 50%: mosaic failed: no",
        "expand 8x64 raw 50%: xla gives other bits",
    )
    wrong = linear_case(errors={LINEAR: float("nan"), EXPANDED: 0.2, DENSE: 0.009})
    assert linear_record(wrong).faults == (
        "linear 8x64 raw 50%, 1 row: linear is off by nan",
        "linear 8x64 raw 50%, 1 row: expand, dot is off by 0.2",
    )


def printed(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_have_shares_ratios_limits_and_what_was_left_out():
    record = expand_record(expand_case(triton=True, xla=False), left_out=(ExpandCell((1, 2), "raw", 0.5),))
    text = printed(device_expand_table(record))
    assert "expand on NVIDIA H200" in text
    assert "0.62" in text  # of a copy
    assert [line.split()[-2] for line in text.splitlines() if " xla " in line] == ["WRONG"]
    assert "1 cells left out" in text
    assert "copy 0 to 0 GB/s; last-level cache 60 MiB (CUDA)" in text
    text = printed(device_linear_table(linear_record(linear_case())))
    lines = {name: line for line in text.splitlines() for name in (LINEAR, DENSE) if f", {name} " in line}
    assert "2.00" in lines[LINEAR]
    assert "6.40" in lines[LINEAR]
    assert "6.40" not in lines[DENSE]
    assert "*" in lines[DENSE]  # nearly all of its time was issuing
    assert "*" not in lines[LINEAR]


@drawing
def test_pictures_have_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib

    from endor_jax.bench import device_plots

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    cases = [expand_case(codec, sparsity) for codec in ("raw", "int4") for sparsity in (0.5, 0.3)]
    device_plots.plot_device_expand(expand_record(*cases), tmp_path / "expand.svg")
    text = (tmp_path / "expand.svg").read_text()
    for name in ("triton raw", "xla int4", "8x64", "NVIDIA H200", "of the copy bandwidth"):
        assert name in text
    products = [linear_case(rows, sparsity) for sparsity in (0.5, 0.8) for rows in (8, 1)]
    device_plots.plot_device_linear(linear_record(*products), tmp_path / "linear.svg")
    text = (tmp_path / "linear.svg").read_text()
    for name in ("linear, 50%", "expand, dot, 80%", "limit, 80%", "rows of x"):
        assert name in text


def test_expand_is_measured_on_distinct_matrices_and_kept_cell_by_cell(small: None):
    cells = device_grid.expand_cells(((16, 128),), ("raw", "dense-packed:3"), (0.5,))
    kept: list[DeviceExpandRecord] = []
    record = measure_device_expand(DeviceExpandSettings(cells, seconds=0.0), keep=kept.append)
    assert [len(each.cases) for each in kept] == [1, 2]
    assert record.faults == ()
    assert record.settings.implementations == ("xla",)
    raw, whole = record.cases
    assert (raw.cell.sparsity, whole.cell.sparsity) == (0.5, 0.0)
    assert raw.exact == whole.exact == {"xla": True}
    assert (raw.dense_bytes, raw.stored_bytes) == (16 * 128 * 2, raw.timings[2].bytes - 16 * 128 * 2)
    assert raw.timings[2].matrices * raw.stored_bytes >= 4 * CACHE
    assert [each.contender for each in raw.timings] == ["copy", "copy by a kernel", "xla"]


@pytest.mark.parametrize("fault", ["a bit", "not written", "one copy"])
def test_an_expansion_with_other_bits_is_a_fault(small: None, monkeypatch: pytest.MonkeyPatch, fault: str):
    right, calls = device_expand._expanded, []

    def wrong(words: jax.Array, layout: Any, name: Any) -> jax.Array:
        calls.append(name)
        dense = right(words, layout, name)
        if fault == "not written":
            return jnp.zeros_like(dense)
        if fault == "one copy" and len(calls) != 2:
            return dense
        return dense.at[3, 5].set(jnp.asarray(1.5, dense.dtype))

    monkeypatch.setattr(device_expand, "_expanded", wrong)
    cell = ExpandCell((16, 128), "raw", 0.5)
    record = measure_device_expand(DeviceExpandSettings((cell,), seconds=0.0))
    assert record.faults == ("expand 16x128 raw 50%: xla gives other bits",)


def test_a_contender_that_fails_is_a_fault_and_the_others_are_measured(small: None):
    cell = ExpandCell((16, 128), "raw", 0.5)
    settings = DeviceExpandSettings((cell,), implementations=("triton", "mosaic", "xla"), seconds=0.0)
    record = measure_device_expand(settings)
    assert record.cases[0].exact == {"xla": True}
    triton, mosaic = record.faults
    assert triton.startswith("expand 16x128 raw 50%: triton failed: UnsupportedError: implementation: got")
    assert mosaic.startswith("expand 16x128 raw 50%: mosaic failed: ")
    assert "no record of a device" not in mosaic  # it is not refused here: it could not be compiled


def test_what_a_failed_program_took_is_made_again(small: None):
    matrix = device_expand.device_matrix((8, 64), codec="raw", sparsity=0.5, dtype="bfloat16")
    outputs = device_expand.Outputs(matrix, 2)
    kept = outputs.arrays
    outputs.renew()
    assert outputs.arrays is kept
    kept[1].delete()
    outputs.renew()
    assert not any(array.is_deleted() for array in outputs.arrays)


def test_products_are_measured_beside_the_dense_one(small: None):
    cells = device_grid.linear_cells(((16, 128),), ("raw",), (0.5,), (1, 8))
    kept: list[DeviceLinearRecord] = []
    settings = DeviceLinearSettings(cells, seconds=0.0)
    record = measure_device_linear(settings, keep=kept.append)
    assert [len(each.cases) for each in kept] == [1, 2]
    assert record.faults == ()
    assert record.settings.implementation == "xla"
    for case, rows in zip(record.cases, (1, 8), strict=True):
        sizes = {each.contender: each.bytes for each in case.timings}
        small_bytes = 2 * rows * (16 + 128)
        assert sizes[LINEAR] == sizes[EXPANDED] == case.moved_bytes == case.stored_bytes + small_bytes
        assert sizes[DENSE] == 16 * 128 * 2 + small_bytes
        linear, dense = case.timing(LINEAR), case.timing(DENSE)
        assert linear is not None
        assert dense is not None
        assert linear.matrices * case.stored_bytes >= 4 * CACHE
        assert dense.matrices * 16 * 128 * 2 >= 4 * CACHE
        assert case.errors.keys() == {LINEAR, EXPANDED, DENSE}
        assert all(0 < error < 0.005 for error in case.errors.values())


def test_a_product_that_is_wrong_is_a_fault(small: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        device_linear, "linear", lambda x, tensor, implementation: jnp.zeros((x.shape[0], 16), x.dtype)
    )
    cell = LinearCell((16, 128), "raw", 0.5, 1)
    record = measure_device_linear(DeviceLinearSettings((cell,), seconds=0.0))
    assert record.faults == ("linear 16x128 raw 50%, 1 row: linear is off by 1",)


def test_weights_are_made_once_for_all_rows(small: None, monkeypatch: pytest.MonkeyPatch):
    made, make = [], device_linear.device_matrix
    monkeypatch.setattr(
        device_linear, "device_matrix", lambda *a, **b: (made.append(b["codec"]), make(*a, **b))[1]
    )
    cells = device_grid.linear_cells(((64, 128),), ("raw", "int4"), (0.5,), (1, 2))
    measure_device_linear(DeviceLinearSettings(cells, seconds=0.0))
    assert made == ["raw", "int4"]


def test_what_cannot_be_measured_is_refused_before_anything_is():
    with pytest.raises(OptionError, match="value codec: got 'zip'"):
        measure_device_expand(DeviceExpandSettings((ExpandCell((8, 64), "zip", 0.5),)))
    with pytest.raises(OptionError, match="value codec: got 'zip'"):
        measure_device_linear(DeviceLinearSettings((LinearCell((8, 64), "zip", 0.5, 1),)))


def test_the_default_cells_are_what_the_issue_wants_shown():
    expand = device_grid.default_expand_cells()
    assert len(set(expand)) == len(expand) < 100
    assert [cell.codec for cell in expand[:6]] == list(device_grid.EXPAND_CODECS)
    assert {cell.shape for cell in expand[:18]} == {(28672, 8192), (8192, 28672), (8192, 8192)}
    assert {0.3, 0.8} <= {cell.sparsity for cell in expand}
    linear = device_grid.default_linear_cells()
    assert len(set(linear)) == len(linear) < 100
    assert {(cell.rows, cell.sparsity) for cell in linear[:16]} == {
        (rows, sparsity) for rows in (1, 8) for sparsity in (0.5, 0.6, 0.7, 0.8)
    }
    assert {cell.rows for cell in linear} == {1, 2, 4, 8, 16, 32, 64}
    full = device_grid.expand_cells()
    assert set(expand) <= set(full)
    assert len(full) == 10 * (5 * 6 + 1)


def test_the_command_measures_the_device(as_on_a_device: None, tmp_path: Path):
    record = tmp_path / "made" / "record.json"
    options = [
        "--shape",
        "16x128",
        "--codec",
        "raw",
        "--sparsity",
        "0.5",
        "--sparsity",
        "0.7",
        "--seconds",
        "0",
    ]
    done = CliRunner().invoke(app, ["bench", "expand", *options, "--record", str(record)])
    assert done.exit_code == 0, done.output
    assert "expand 16x128 raw 70% (2 of 2; about" in done.stderr
    assert "of a copy" in done.stdout
    values = json.loads(record.read_text())
    assert [case["cell"]["sparsity"] for case in values["cases"]] == [0.5, 0.7]
    options = ["--shape", "16x128", "--codec", "raw", "--sparsity", "0.5", "--rows", "2", "--seconds", "0"]
    done = CliRunner().invoke(app, ["bench", "linear", *options, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cases"][0]["cell"]["rows"] == 2


def test_the_command_fails_when_something_is_wrong_and_keeps_the_record(
    as_on_a_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right = device_expand._expanded
    monkeypatch.setattr(device_expand, "_expanded", lambda *arguments: 2 * right(*arguments))
    record = tmp_path / "record.json"
    options = ["--shape", "16x128", "--codec", "raw", "--sparsity", "0.5", "--seconds", "0"]
    done = CliRunner().invoke(app, ["bench", "expand", *options, "--record", str(record)])
    assert done.exit_code == 1
    assert "expand 16x128 raw 50%: xla gives other bits" in done.stderr
    assert "got 1 contenders that failed or are wrong, expected none" in done.stderr
    assert json.loads(record.read_text())["faults"]


def test_no_time_is_one_cell_and_the_others_are_left_out(as_on_a_device: None):
    options = ["--shape", "16x128", "--codec", "raw", "--seconds", "0", "--minutes", "0", "--json"]
    done = CliRunner().invoke(app, ["bench", "expand", *options])
    assert done.exit_code == 0, done.output
    assert "5 cells left out: no more than 0 s" in done.stderr
    assert len(json.loads(done.stdout)["left_out"]) == 5


@pytest.mark.parametrize("suite", ["expand", "linear"])
def test_options_of_the_other_place_are_refused(suite: str, monkeypatch: pytest.MonkeyPatch):
    for on_device, options, said in (
        (True, ["--threads", "1"], "--threads: got [1], expected nothing: JAX computes on a device here"),
        (False, ["--full"], "--full: got True, expected nothing: JAX computes on the CPU here"),
        (False, ["--minutes", "3"], "--minutes: got 3.0, expected nothing: JAX computes on the CPU here"),
        (
            False,
            ["--sparsity", "0.5", "--sparsity", "0.6"],
            "--sparsity: got 2 of them, expected one on the CPU",
        ),
    ):
        monkeypatch.setattr(device, "on_a_device", lambda on_device=on_device: on_device)
        done = CliRunner().invoke(app, ["bench", suite, *options])
        assert done.exit_code == 2
        assert said in done.stderr


def test_what_expands_can_be_named(as_on_a_device: None, monkeypatch: pytest.MonkeyPatch):
    options = ["--shape", "16x128", "--codec", "raw", "--sparsity", "0.5", "--seconds", "0", "--json"]
    asked = ["bench", "expand", *options, "--implementation"]
    done = CliRunner().invoke(app, [*asked, "xla"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["implementations"] == ["xla"]
    wrong = CliRunner().invoke(app, [*asked, "cpu"])
    assert wrong.exit_code == 2
    assert "--implementation: got cpu, expected triton, xla, mosaic" in wrong.stderr
    monkeypatch.setattr(device, "on_a_device", lambda: False)
    refused = CliRunner().invoke(app, [*asked, "xla"])
    assert "expected nothing: JAX computes on the CPU here" in refused.stderr


def test_stored_bytes_are_those_of_the_words():
    made = device_expand.device_matrix((8, 64), codec="raw", sparsity=0.5, dtype="bfloat16")
    assert made.stored_bytes == made.words.nbytes == stored_bytes(made.tensor)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_a_program_for_a_gpu_is_one_kernel_per_matrix_into_memory_that_is_given(
    small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(place, "default_place", lambda: Place("gpu", (9, 0)))
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        device_expand, "compiled", lambda *arguments, donate: (asked.update(a=arguments, d=donate), 0.0)
    )
    matrix = device_expand.device_matrix((16, 256), codec="raw", sparsity=0.5, dtype="bfloat16")
    words = device_expand.words_on_device(matrix, CACHE, moved_bytes=1)
    outputs = device_expand.Outputs(matrix, len(words))
    device_expand.expand_program("triton", matrix, words, outputs)
    function, *arguments = asked["a"]
    jitted = jax.jit(function, donate_argnums=asked["d"], keep_unused=True)
    lowered = cuda_lowered(jitted, *arguments)
    operations = large_operations(lowered, 16 * 256)
    assert operations == ["stablehlo.custom_call"]  # in a function that is called for every matrix
    text = lowered.as_text()
    (name,) = re.findall(
        r"func\.func private @(\w+)\([^{]*\{\n(?:(?!func\.func)[\s\S])*?xla\.gpu\.triton", text
    )
    assert text.count(f"call @{name}(") == len(words) > 1
    assert text.count("tf.aliasing_output") == len(words)
