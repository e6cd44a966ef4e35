"""What the verbs say beforehand and afterwards: predictions, advice, and what was achieved beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import endor_jax as endor
from endor_jax.cli.generate import comparison
from endor_jax.cli.plan import plan_values, prediction_values
from endor_jax.generate import step_rates
from endor_jax.generate.statistics import Achieved
from endor_jax.store import disk_rates, reader_choice
from endor_jax.store.disk_rates import IN_FLIGHT, Rates, Reading
from endor_jax.streaming import measure
from endor_jax.streaming.devices import first_devices
from endor_jax.streaming.prediction import Prediction
from tests.generate.budgets import smallest

READ_BOUND = Prediction(
    sequences=1,
    read_seconds=0.25,
    transfer_seconds=0.0,
    compute_seconds=0.09,
    reading_processor_seconds=0.02,
    seconds=0.25,
    binding="read",
    cached=False,
)


@pytest.fixture(autouse=True)
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny checkpoint counts as large; what is measured takes no time and is kept for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 0)
    monkeypatch.setattr(step_rates, "REPEATS", 1)
    monkeypatch.setattr(measure, "SHAPES", ((16, 16), (32, 64), (64, 64)))
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 1)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.001)
    monkeypatch.setattr(step_rates, "HIDDEN", 64)


def test_plan_predicts_and_advises(run_command, checkpoint):
    device, host = smallest(checkpoint)
    budgets = ("--device-memory", str(device), "--host-memory", str(host))
    result = json.loads(run_command("plan", checkpoint, *budgets, "--json").stdout)
    prediction = result["prediction"]
    assert prediction["sequences"] == 1
    assert prediction["tokens_per_second"] == 1 / prediction["seconds"]
    assert "Offloading is pointless" in result["advice"][0]
    words = run_command("plan", checkpoint, *budgets).stdout
    assert "prediction   " in words
    assert "advice       Offloading is pointless: all records fit on the device" in words


def test_plan_for_several_devices_is_the_one_that_they_load(run_command, checkpoint, tmp_path):
    sharded = tmp_path / "sharded.endor"
    run_command("reshard", checkpoint, sharded, "--shards", "4")
    budgets = {"device_memory": "3MiB", "host_memory": "8MiB"}
    options = [word for name, size in budgets.items() for word in (f"--{name.replace('_', '-')}", size)]
    said = run_command("plan", sharded, *options, "--tensor-parallel", "4", "--json")
    result = json.loads(said.stdout)
    with endor.load(sharded, mesh=first_devices(4), **budgets) as model:
        assert {name: result[name] for name in plan_values(model.plan)} == plan_values(model.plan)
        assert result["devices"] == 4
        assert (model.prediction is None) == (result["prediction"] is None)
    refused = run_command("plan", checkpoint, "--tensor-parallel", "4")
    assert "a multiple of 4 parts" in refused.stderr
    assert "endor reshard" in refused.stderr


def test_plan_for_several_devices_of_what_is_not_converted(run_command, source):
    """As if it were converted with as many shards."""
    options = ("--sparsity", "0.5", "--json")
    alone = json.loads(run_command("plan", source, *options).stdout)
    shared = json.loads(run_command("plan", source, *options, "--tensor-parallel", "2").stdout)
    of_config = run_command("plan", source / "config.json", *options, "--tensor-parallel", "2")
    assert json.loads(of_config.stdout)["devices"] == shared["devices"] == 2
    assert shared["resident_bytes"] < 0.7 * alone["resident_bytes"]


def test_plan_for_many_sequences_at_once(run_command, checkpoint):
    result = json.loads(run_command("plan", checkpoint, "--batch-size", "3", "--json").stdout)
    assert result["prediction"]["sequences"] == 3
    assert result["advice"] == []  # everything is resident


def test_plan_of_what_is_not_converted_predicts_from_what_is_known_of_its_disk(run_command, source):
    dtype = ("--dtype", "bfloat16", "--sparsity", "0.5")
    said = run_command("plan", source, *dtype).stdout
    assert "prediction   its disk was not measured: run endor doctor " in said
    assert json.loads(run_command("plan", source, *dtype, "--json").stdout)["prediction"] is None
    readings = {reads: Reading(1e9) for reads in IN_FLIGHT}
    rates = {"preadv": Rates(readings, readings), "direct": None}
    for length in (2**power for power in range(24)):  # parts of any size
        disk_rates.keep(disk_rates.disk_of(source, [length]), rates)
    assert json.loads(run_command("plan", source, *dtype, "--json").stdout)["prediction"]["seconds"] > 0


def test_plan_of_a_small_checkpoint_predicts_nothing(run_command, checkpoint, monkeypatch):
    monkeypatch.setattr(reader_choice, "SMALL_BYTES", 2**24)
    assert "prediction   too small to measure" in run_command("plan", checkpoint).stdout


def test_doctor_leaves_what_plan_needs(run_command, source, tmp_path, monkeypatch):
    monkeypatch.chdir(source)
    run_command("doctor", "--json")
    assert disk_rates.remembered(disk_rates.disk_of(source, [2**30]))["preadv"] is not None


def test_generate_says_beforehand_and_compares_afterwards(run_command, checkpoint):
    arguments = ("generate", checkpoint, "-p", "Hello", "--max-tokens", "6")
    done = run_command(*arguments, "--json")
    result = json.loads(done.stdout)
    assert result["prediction"]["seconds"] > 0
    assert result["achieved"]["seconds"] > 0
    assert result["achieved"]["binding"] in ("read", "transfer", "compute")
    done = run_command(*arguments)
    before, _, after = done.stderr.partition("generation 6 tokens")
    assert "predicted " in before
    assert "-bound (" in before
    assert "predicted " in after
    assert "achieved " in after
    assert "computing " in after


def test_a_prediction_as_json():
    assert prediction_values(None) is None
    values = prediction_values(READ_BOUND)
    assert values is not None
    assert (values["binding"], values["tokens_per_second"]) == ("read", 4.0)


def test_predicted_beside_achieved_per_stage():
    achieved = Achieved(
        tokens_per_second=3.8,
        seconds=0.26,
        read_seconds=0.24,
        read_wait_seconds=0.2,
        transfer_wait_seconds=0.0,
        compute_seconds=0.06,
    )
    assert achieved.binding == "read"
    assert comparison(READ_BOUND, achieved) == (
        "predicted 4 tokens/s, achieved 3.8; per pass reading 0.25 s predicted, 0.24 s taken, 0.2 s of them "
        "waited for; computing 0.09 s predicted, at least 0.06 s taken, the rest hidden behind what it "
        "waited for"
    )


def test_a_link_is_compared_by_what_was_waited_for():
    predicted = Prediction(1, 0.0, 0.5, 0.1, 0.0, 0.5, "transfer", False)
    achieved = Achieved(2.0, 0.5, 0.0, 0.0, 0.45, 0.05)
    assert achieved.binding == "transfer"
    assert "per pass transfer 0.5 s predicted, 0.45 s waited for; computing" in comparison(
        predicted, achieved
    )


def test_what_devices_give_each_other_is_predicted_beside_computing():
    predicted = Prediction(1, 0.0, 0.0, 0.1, 0.0, 0.3, "gather", False, gather_seconds=0.2)
    achieved = Achieved(4.0, 0.25, 0.0, 0.0, 0.0, 0.25)
    assert "per pass computing 0.1 s and gathering 0.2 s predicted, at least 0.25 s taken" in comparison(
        predicted, achieved
    )
