"""`endor trace`: a file that Perfetto opens, a picture, and which stage the others waited for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import endor_jax as endor


def test_a_generation_is_traced(run_command, checkpoint: Path, tmp_path: Path):
    with endor.load(checkpoint) as model:
        records = len(model.plan.demands)
    trace = tmp_path / "made" / "trace.json"
    options = ["-p", "Hello", "--max-tokens", "4", "--reader", "preadv", "--output", trace]
    done = run_command("trace", checkpoint, *options, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["tokens"], result["passes"], result["reader"]) == (4, 3, "preadv")
    assert (result["trace"], result["plot"]) == (str(trace), None)
    assert result["binding"] in ("read", "put", "step")
    assert all(0 <= share <= 1 for share in [*result["busy"].values(), *result["waited"].values()])
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "i"] == [f"pass {i}" for i in range(4)]
    assert sum(event.get("cat") == "step" for event in events) == 4 * records
    assert [path.name for path in trace.parent.iterdir()] == ["trace.json"]


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib (pip install 'endor_jax[plot]')"
)
def test_a_picture_is_drawn_and_the_stages_are_said(run_command, checkpoint: Path, tmp_path: Path):
    trace, plot = tmp_path / "trace.json", tmp_path / "pictures" / "trace.svg"
    done = run_command("trace", checkpoint, "-p", "Hello", "--max-tokens", "3", "-o", trace, "--plot", plot)
    assert done.code == 0, done.stderr
    assert plot.read_bytes().startswith(b"<?xml")
    assert "everything waits for" in done.stdout
    assert "ui.perfetto.dev" in done.stdout


def test_a_picture_of_another_kind_is_refused_before_anything_is_done(
    run_command, checkpoint: Path, tmp_path: Path
):
    done = run_command(
        "trace", checkpoint, "-p", "Hello", "--plot", tmp_path / "trace.doc", "-o", tmp_path / "trace.json"
    )
    assert done.code != 0
    assert done.stderr.startswith("endor: plot: got ")
    assert list(tmp_path.iterdir()) == []
