"""perplexity and compare say when they score text that a checkpoint was calibrated with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.cli.blocks import Choice, unseen_options
from endor_jax.conversion.calibration_text import described
from endor_jax.conversion.settings import CalibrationText
from tests.tiny_models import LLAMA, write_tiny

SEEN = "some of this text was calibrated with: "


@pytest.mark.parametrize(
    ("text", "choice", "options"),
    [
        (None, Choice(None, 512), "--blocks 64:"),
        (None, Choice(None, 512, 64, 104, seed=0), None),
        (None, Choice(None, 512, 63, 104, seed=0), "--blocks 64:"),
        (None, Choice(None, 512, None, 10, seed=0), "--blocks 64:"),
        (None, Choice(None, 512, 64, 104, seed=5), "--blocks 64: --seed 0"),
        (None, Choice(None, 256, 64, 104, seed=0), "--blocks 64: --sequence-length 512"),
        (None, Choice("other.txt", 512), None),
        ("/elsewhere/some.txt", Choice("here/some.txt", 512), "--blocks 64:"),
        ("some.txt", Choice(None, 512), None),
    ],
)
def test_what_leaves_calibrated_text_out(text, choice, options):
    calibration = described(CalibrationText(text, blocks=64), np.zeros((64, 512), np.int32))
    assert unseen_options(calibration, choice) == options


@pytest.mark.parametrize("calibration", [None, 3, {"text": "pydoc_data.topics"}])
def test_nothing_is_said_of_what_is_not_known(calibration):
    assert unseen_options(calibration, Choice(None, 512)) is None


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("seen")
    source = write_tiny(base / "source", LLAMA | {"num_hidden_layers": 1}, tokenizer=True)
    (base / "some.txt").write_text("".join(chr(c) for c in np.random.default_rng(0).integers(32, 126, 200)))
    text = CalibrationText(str(base / "some.txt"), blocks=3, length=16, seed=1)
    endor.convert(source, base / "model.endor", prune="wanda", sparsity=0.5, calibration=text)
    return base / "model.endor"


def test_both_verbs_say_so_and_how_to_leave_it_out(run_command, calibrated):
    text = ("--data", calibrated.parent / "some.txt", "--sequence-length", "16", "--json")
    done = run_command("perplexity", calibrated, *text)
    assert f"{calibrated}: {SEEN}--blocks 3: --seed 1 leaves it out" in done.stderr
    assert json.loads(done.stdout)["blocks"] is None
    unseen = run_command("perplexity", calibrated, *text, "--blocks", "3:", "--seed", "1")
    assert (unseen.code, SEEN in unseen.stderr) == (0, False)
    chosen = (*text, "--blocks", "2:4", "--seed", "1", "--generated-tokens", "0")
    done = run_command("compare", calibrated, calibrated, *chosen)
    assert (done.code, done.stderr.count(f"{SEEN}--blocks 3: leaves it out")) == (0, 2)  # for either side
