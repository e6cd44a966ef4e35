"""A search as a whole, on functions that say what a try loses: what it chooses, leaves behind and refuses."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from endor_jax.conversion.settings import CalibrationText
from endor_jax.errors import (
    CorruptCheckpointError,
    DestinationBusyError,
    DestinationExistsError,
    InvalidInputError,
    QualityError,
    ResumeError,
)
from endor_jax.search.api import finished_tries
from endor_jax.search.result import Quality, holds, to_json
from endor_jax.search.workplace import LOSSES_FILE
from endor_jax.store.journal import Journal
from endor_jax.store.manifest import MANIFEST_FILE
from tests.search.faked import SETTINGS, Faked, search
from tests.tiny_models import LLAMA, write_tiny

ONE_LAYER = LLAMA | {"num_hidden_layers": 1}


def tenth_of_percent(percent: int) -> float:
    """5 % at a sparsity of 47 %."""
    return 0.05 * percent / 47.5


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("search") / "source", ONE_LAYER, tokenizer=True)


@pytest.fixture
def faked(monkeypatch):
    return Faked(tenth_of_percent, tenth_of_percent).install(monkeypatch)


def below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def test_the_best_try_becomes_the_destination(source, tmp_path, faked):
    found = search(source, tmp_path / "dst")
    assert (found.chosen.percent, found.chosen.sparsity, found.chosen.held) == (47, 0.47, True)
    assert [each.percent for each in found.tries] == [50, 25, 37, 43, 46, 48, 47]
    assert found.chosen.quality.increase == pytest.approx(tenth_of_percent(47), rel=1e-5)
    assert found.check.increase == pytest.approx(tenth_of_percent(47), rel=1e-5)
    assert found.check.dense_perplexity == pytest.approx(math.exp(2))
    assert json.loads((tmp_path / "dst" / MANIFEST_FILE).read_text()) == 47
    assert below(tmp_path) == {"dst", f"dst/{MANIFEST_FILE}", "dst.search.json"}
    assert json.loads((tmp_path / "dst.search.json").read_text()) == to_json(found)
    assert faked.converted == ["dense", "0.50", "0.25", "0.37", "0.43", "0.46", "0.48", "0.47"]
    assert faked.scored == [*faked.converted, "0.47"]


def test_progress_says_which_try_it_is(source, tmp_path, faked):
    seen = []
    search(source, tmp_path / "dst", progress=lambda what, done, total: seen.append(what))
    assert seen[0] == "checking the source"
    names = [what for what in dict.fromkeys(seen) if what != "checking the source"]
    assert names[:4] == ["dense, encoding", "dense, scoring", "try 1: 50 %, encoding", "try 1: 50 %, scoring"]
    assert names[-1] == "check: 47 %, scoring"
    assert "check: 47 %, encoding" not in names


def test_the_first_try_of_a_run_is_announced_and_nothing_else(source, tmp_path, faked):
    announced = []

    def stop_after_two_tries() -> None:
        if faked.converted == ["dense", "0.50", "0.25"]:
            raise KeyboardInterrupt

    faked.before = stop_after_two_tries
    with pytest.raises(KeyboardInterrupt):
        search(source, tmp_path / "dst", announce=announced.append)
    assert [each.expected.stored_bytes for each in announced] == [50]
    faked.before = lambda: None
    search(source, tmp_path / "dst", announce=announced.append)  # 25 % is converted but not scored
    assert [each.expected.stored_bytes for each in announced] == [50, 100 - 37]


def test_a_limit_accepts_what_is_equal_to_it_and_never_nan(source, tmp_path, faked):
    equal = Quality(10.0, 9.0, 0.05, 0.001, 100)
    assert holds(equal, 0.05)
    assert not holds(replace(equal, increase=0.0500001), 0.05)
    assert not holds(replace(equal, increase=math.nan), 5.0)
    faked.lost = faked.checked = lambda percent: 0.0
    assert search(source, tmp_path / "dst", max_increase=0.0).chosen.percent == 95


def test_what_does_not_only_fall_ends_with_a_try_that_holds(source, tmp_path, faked):
    faked.lost = faked.checked = lambda percent: 0.01 if percent % 3 == 0 else 0.5
    found = search(source, tmp_path / "dst")
    assert found.chosen.held
    assert found.chosen.quality.increase <= 0.05
    assert found.chosen.percent == max(each.percent for each in found.tries if each.held)


def test_a_broken_model_does_not_hold_and_is_null_in_json(source, tmp_path, faked):
    faked.lost = lambda percent: math.nan if percent >= 30 else 0.01
    found = search(source, tmp_path / "dst")
    assert found.chosen.percent == 29
    written = json.loads((tmp_path / "dst.search.json").read_text(), parse_constant=pytest.fail)
    assert written["tries"][0] | {"stored_bytes": 0} == {
        "sparsity": 0.5,
        "perplexity": None,
        "dense_perplexity": pytest.approx(math.exp(2)),
        "increase": None,
        "standard_error": None,
        "tokens": 12,
        "stored_bytes": 0,
        "held": False,
        "check": None,
    }


def test_nothing_holds(source, tmp_path, faked):
    faked.lost = lambda percent: 0.5
    message = r"search for .*dst: got perplexity \+50.00% ± 0.00% at 1 % sparsity already, expected at most"
    for _ in range(2):
        with pytest.raises(QualityError, match=message):
            search(source, tmp_path / "dst")
    tries = finished_tries(tmp_path / "dst", max_increase=0.05)
    assert [each.percent for each in tries] == [50, 25, 12, 6, 3, 1]
    assert len(faked.scored) == 1 + len(tries)
    assert below(tmp_path) == {"dst.search", "dst.search/endor.journal", f"dst.search/{LOSSES_FILE}"}


def test_after_a_check_that_fails_the_search_goes_on_below(source, tmp_path, faked):
    faked.checked = lambda percent: 1.2 * tenth_of_percent(percent)
    found = search(source, tmp_path / "dst")
    limit = 0.05 / 1.2  # what the search's own text may show, if the other shows 1.2 times as much
    assert found.chosen.percent == 39 == int(47.5 / 1.2)
    assert found.chosen.quality.increase <= limit
    assert found.check.increase <= 0.05
    checked = {each.percent: each.held for each in found.tries if each.check is not None}
    assert checked == {47: False, 39: True}
    assert json.loads((tmp_path / "dst" / MANIFEST_FILE).read_text()) == 39
    assert json.loads((tmp_path / "dst.search.json").read_text()) == to_json(found)


def test_what_was_let_go_is_made_again_when_it_is_the_best_after_all(source, tmp_path, faked):
    faked.checked = lambda percent: 0.06 if percent == 47 else 0.01
    faked.lost = lambda percent: 0.049 if percent == 47 else 0.01 if percent < 47 else 0.2
    found = search(source, tmp_path / "dst")
    assert found.chosen.percent == 46
    assert faked.converted.count("0.46") == 2
    assert below(tmp_path) == {"dst", f"dst/{MANIFEST_FILE}", "dst.search.json"}


@pytest.mark.parametrize("checked", [0.06, math.inf, math.nan])
def test_no_try_holds_on_other_text(source, tmp_path, faked, checked):
    faked.checked = lambda percent: checked
    message = (
        r"search for .*dst: got perplexity \+0\.\d\d% ± 0.00%.* at 1 % sparsity already, expected at most"
    )
    scored = []
    for _ in range(2):
        with pytest.raises(QualityError, match=message):
            search(source, tmp_path / "dst")
        scored.append(len(faked.scored))
    assert scored[0] == scored[1], "the second time something was done again"
    assert not (tmp_path / "dst").exists()
    assert not (tmp_path / "dst.search.json").exists()
    assert not any("/" in name for name in below(tmp_path / "dst.search"))
    tries = finished_tries(tmp_path / "dst", max_increase=0.05)
    assert any(each.check is not None for each in tries)


@pytest.fixture
def interrupted(source, tmp_path, faked):
    """A search that was interrupted while its third try was scored."""

    def stop(what, done, total):
        if what.startswith("try 3") and "scoring" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(source, tmp_path / "dst", progress=stop)
    return tmp_path / "dst"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": replace(SETTINGS, prune="wanda")}, "settings prune 'wanda', expected 'magnitude'"),
        ({"settings": replace(SETTINGS, values="int8")}, "settings values 'int8', expected 'auto'"),
        ({"settings": replace(SETTINGS, dtype="float16")}, "settings dtype 'float16', expected None"),
        (
            {"settings": replace(SETTINGS, calibration=CalibrationText(blocks=2, seed=3))},
            "settings calibration seed 3, expected 0",
        ),
        ({"max_increase": 0.06}, "max_increase 0.06, expected 0.05"),
        ({"scored_blocks": 4}, "text scored 4, expected 3"),
    ],
)
def test_another_search_is_refused_by_name(source, interrupted, changed, message):
    before = below(interrupted.parent)
    with pytest.raises(ResumeError, match=f"got {message}, as when it was interrupted"):
        search(source, interrupted, **changed)
    assert below(interrupted.parent) == before


def test_another_source_is_refused_by_the_tensor(tmp_path, interrupted):
    other = write_tiny(tmp_path / "other", ONE_LAYER, tokenizer=True, seed=1)
    with pytest.raises(ResumeError, match=r"got source model\.embed_tokens.weight '"):
        search(other, interrupted)


def test_the_sparsity_of_the_settings_means_nothing(source, interrupted):
    assert search(source, interrupted, settings=replace(SETTINGS, sparsity=0.1)).chosen.percent == 47


def test_without_resume_nothing_may_be_there(source, interrupted):
    with pytest.raises(DestinationExistsError, match="got what an interrupted search left"):
        search(source, interrupted, resume=False)


def test_what_is_there_already_is_refused_before_anything_is_written(source, tmp_path, faked):
    for name in ("dst", "dst.search", "dst.search.json"):
        taken = tmp_path / name
        taken.mkdir()
        (taken / "theirs").touch()
        with pytest.raises(DestinationExistsError, match=name):
            search(source, tmp_path / "dst")
        assert below(tmp_path) == {name, f"{name}/theirs"}
        shutil.rmtree(taken)
    assert faked.converted == []


def test_a_place_inside_the_source_is_refused(source, faked):
    with pytest.raises(InvalidInputError, match="got a place inside the source"):
        search(source, source / "dst")


def test_two_searches_for_one_destination(source, tmp_path, faked):
    (tmp_path / "dst.search").mkdir()
    other = Journal(tmp_path / "dst.search")
    with pytest.raises(DestinationBusyError, match="another process writing there"):
        search(source, tmp_path / "dst")
    other.close()
    assert search(source, tmp_path / "dst").chosen.percent == 47


def test_a_best_try_that_is_missed_is_made_again(source, interrupted, faked):
    shutil.rmtree(interrupted.with_name("dst.search") / "0.25")
    assert search(source, interrupted).chosen.percent == 47


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_losses_of_the_dense_model_that_are_others(source, interrupted, damage):
    path = interrupted.with_name("dst.search") / LOSSES_FILE
    if damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    else:
        path.unlink()
    with pytest.raises(CorruptCheckpointError, match="the losses of the dense model; remove "):
        search(source, interrupted)


def test_a_destination_without_a_name_of_its_own(source, tmp_path, faked, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert search(source, Path(".")).path == tmp_path / "here"
    assert (tmp_path / "here.search.json").exists()
