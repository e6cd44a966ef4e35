"""Plots: a file is drawn of every record; what cannot be drawn is refused before anything is measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from endor_jax.bench import plots
from endor_jax.bench.decode import DecodeRecord, DecodeSettings, DecodeTiming, Generation
from endor_jax.bench.environment import Environment
from endor_jax.bench.expand import ExpandCase, ExpandRecord, ExpandSettings
from endor_jax.bench.linear import LinearCase, LinearRecord, LinearSettings
from endor_jax.bench.race import Timing
from endor_jax.cli.main import app
from endor_jax.errors import MissingDependencyError, OptionError

NOWHERE = Environment(None, {}, {})
drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib (pip install 'endor_jax[plot]')"
)


def timing(name: str, seconds: float) -> Timing:
    return Timing(name, 1000, 2, 1.0, (seconds, 1.1 * seconds, 0.9 * seconds))


def expand_record() -> ExpandRecord:
    timings = [timing("memcpy", 1.0), timing("read", 0.5), timing("ours avx2", 0.9), timing("xla", 9.0)]
    cases = [
        ExpandCase((8, 64), codec, threads, 1000, 400, tuple(timings))
        for codec in ("raw", "packed:2")
        for threads in (1, 2)
    ]
    return ExpandRecord(ExpandSettings(), tuple(cases), NOWHERE)


def linear_record() -> LinearRecord:
    names = {"read": 0.5, "ours fused avx2": 1.0, "ours expanded": 3.0, "xla float32": 2.0}
    cases = [
        LinearCase(shape, rows, 2, 400, tuple(timing(name, took * rows) for name, took in names.items()))
        for shape in ((8, 64), (16, 64))
        for rows in (1, 2, 4)
    ]
    return LinearRecord(LinearSettings(), tuple(cases), NOWHERE)


def decode_record() -> DecodeRecord:
    timings = [
        DecodeTiming(name, 1.0, (1, 2), (Generation(1.0, (0.1,)), Generation(1.0, (0.2,))))
        for name in ("ours", "transformers bfloat16")
    ]
    return DecodeRecord("model", DecodeSettings(), 4, 2, 100, tuple(timings), NOWHERE)


@drawing
@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_file_is_drawn_of_every_record(tmp_path: Path, form: str):
    plots.plot_expand(expand_record(), tmp_path / f"expand.{form}")
    plots.plot_linear(linear_record(), tmp_path / "made" / f"linear.{form}")
    plots.plot_decode(decode_record(), tmp_path / f"decode.{form}")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3
    start = b"\x89PNG" if form == "png" else b"<?xml"
    assert all(file.read_bytes().startswith(start) for file in files)


@drawing
def test_the_names_of_contenders_are_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    plots.plot_linear(linear_record(), tmp_path / "linear.svg")
    text = (tmp_path / "linear.svg").read_text()
    assert all(name in text for name in ("ours fused avx2", "ours expanded", "xla float32", "rows of x"))
    assert ">read<" not in text


@drawing
def test_a_file_of_another_kind_is_refused():
    with pytest.raises(OptionError, match=r"plot: got .*picture.doc, expected a name with .svg, .png, .pdf"):
        plots.check_plot(Path("picture.doc"))


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="plot: got no matplotlib"):
        plots.check_plot(Path("picture.svg"))
    for suite in ("expand", "linear", "decode"):
        done = CliRunner().invoke(app, ["bench", suite, "--plot", "picture.svg"])
        assert done.exit_code == 1
        assert "pip install 'endor_jax[plot]'" in done.stderr
