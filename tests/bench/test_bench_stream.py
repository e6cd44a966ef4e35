"""`endor bench stream`: slowed stores, the schedule without overlap, figures from samples, a whole run."""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.bench import stream
from endor_jax.bench.slow_store import SlowCheckpoint
from endor_jax.bench.stream import StreamSettings
from endor_jax.bench.stream_cases import Store, StreamCase, measure_case, order_of
from endor_jax.bench.stream_models import write_dense
from endor_jax.bench.stream_passes import (
    Passes,
    computing,
    one_after_another,
    plan_in_tier,
    plan_of_records,
    time_passes,
)
from endor_jax.bench.stream_sweep import Predicted, SweepPoint, predict_sweep, worst_error, worst_step
from endor_jax.cli.main import app
from endor_jax.errors import OptionError
from endor_jax.generate.placement import pass_records
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.plan import Demand, FixedCosts, Plan
from endor_jax.streaming.prediction import Prediction
from endor_jax.streaming.schedule import Action
from endor_jax.streaming.timeline import Span, Timeline
from tests.tiny_models import LLAMA, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("stream")
    config = {key: value for key, value in LLAMA.items() if key != "eos_token_id"}
    config["num_hidden_layers"] = 20  # more than a ring holds
    endor.convert(write_tiny(base / "source", config), base / "tiny.endor", prune="magnitude", sparsity=0.5)
    return base / "tiny.endor"


def plan_of(*tiers: str) -> Plan:
    demands = tuple(Demand(f"layers.{i}", 100, 100, 1, 100) for i in range(len(tiers)))
    return Plan(demands, tiers, FixedCosts(), 2, 0, 0, True)  # pyright: ignore[reportArgumentType]


def samples(*seconds: float, processor: float = 0.0) -> Passes:
    return Passes(seconds, (processor,) * len(seconds))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_slowed_store_takes_bytes_over_rate_however_many_read(model: Path, threads: int):
    with Checkpoint(model, reader="preadv") as checkpoint:
        parts = checkpoint.manifest.parts
    total = sum(part.length_bytes for part in parts)
    seconds = 0.3
    with SlowCheckpoint(model, reader="preadv", bytes_per_second=total / seconds) as slow:
        buffers = [np.zeros(part.length_bytes, np.uint8) for part in parts]
        begun = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part, buffer: slow.read_part(part, into=buffer), parts, buffers))
        taken = time.perf_counter() - begun
    assert seconds <= taken < 20 * seconds
    with Checkpoint(model, reader="preadv") as checkpoint:
        for part, buffer in zip(parts, buffers, strict=True):
            plain = np.zeros_like(buffer)
            checkpoint.read_part(part, into=plain)
            np.testing.assert_array_equal(buffer, plain)


def test_an_idle_slowed_store_saves_up_nothing(model: Path):
    with SlowCheckpoint(model, reader="preadv", bytes_per_second=1e9) as slow:
        part = slow.manifest.parts[0]
        slow.bytes_per_second = part.length_bytes / 0.05
        time.sleep(0.1)
        begun = time.perf_counter()
        slow.read_part(part, into=np.zeros(part.length_bytes, np.uint8))
        assert time.perf_counter() - begun >= 0.05


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(model: Path, rate: float):
    with pytest.raises(OptionError, match=r"rate: got .* bytes per second, expected more than 0"):
        SlowCheckpoint(model, reader="preadv", bytes_per_second=rate)


def test_without_overlap_a_record_is_done_with_before_the_next_is_read():
    found = one_after_another(plan_of("disk", "host", "device"))
    assert found.prologue == ()
    kinds = ("read", "put", "step", "release"), ("put", "step", "release"), ("step", "release")
    assert found.one_pass == tuple(Action(kind, i) for i, each in enumerate(kinds) for kind in each)  # pyright: ignore


def test_the_executor_keeps_to_it_and_by_itself_it_overlaps(model: Path):
    with Checkpoint(model, reader="preadv") as checkpoint:
        plan = plan_in_tier(checkpoint, "disk")
        assert set(plan.tiers) == {"disk"}
        logits = {}
        for name, schedule in (("alone", one_after_another(plan)), ("together", None)):
            timeline = Timeline(keep=True)
            with computing(checkpoint, plan, sequences=1, schedule=schedule, timeline=timeline) as one_pass:
                logits[name] = [one_pass() for _ in range(2)]
            spans = sorted(
                (span for span in timeline.spans if span.stage in ("read", "wait for step")),
                key=lambda span: span.end_seconds,
            )
            if name == "alone":
                order = [(span.stage, span.record) for span in spans]
                names = [demand.name for demand in plan.demands]
                expected = [(stage, name) for name in 2 * names for stage in ("read", "wait for step")]
                assert order == expected
                assert all(a.end_seconds <= b.start_seconds for a, b in itertools.pairwise(spans))
            else:
                order = order_of(timeline.spans, plan)
                assert (order.ahead, order.steps, order.kept) == (2, 2 * len(plan.demands), True)
                assert order.least_seconds > 0
        np.testing.assert_array_equal(logits["alone"], logits["together"])


def test_a_transfer_that_comes_after_its_step_is_found():
    plan = plan_of("disk", "device", "disk", "disk")
    streamed = ["layers.0", "layers.2", "layers.3"]

    def spans(*puts: float) -> Sequence[Span]:
        put = [Span("put", name, at, at, at) for name, at in zip(2 * streamed, puts, strict=False)]
        steps = [
            Span("step", name, at, at, at) for name, at in zip(streamed, (10.0, 20.0, 30.0), strict=True)
        ]
        return [*put, *steps, Span("step", "layers.1", 15.0, 15.0, 15.0)]

    good = order_of(spans(1.0, 2.0, 9.0, 19.5, 29.0), plan)
    assert (good.ahead, good.steps, good.kept, good.least_seconds) == (2, 3, True, 0.5)
    assert not order_of(spans(1.0, 2.0, 9.0, 21.0, 29.0), plan).kept


def test_the_limit_is_the_slowest_stage_or_the_work_of_the_processors():
    alone = {"read": samples(2.0, 4.0, processor=1.0), "compute": samples(2.8)}
    case = StreamCase("s", 4, 100, samples(3.3), samples(6.6), alone, {}, 2, 250, samples(9.9))
    assert case.slowest == "read"
    assert case.of_slowest == pytest.approx(1.1)
    assert case.limit_seconds == pytest.approx(3.3)
    assert case.of_limit == pytest.approx(1.0)
    assert (case.overlap_gain, case.dense_gain) == pytest.approx((2.0, 3.0))
    assert case.tokens_per_second == pytest.approx(4 / 3.3)
    values = json.loads(json.dumps(case.to_json()))
    assert values["alone"]["read"]["seconds"] == [2.0, 4.0]
    assert values["dense"]["median_seconds"] == 9.9
    assert StreamCase("s", 1, 1, samples(1.0), samples(1.0), alone, {}, None).limit_seconds == 3.0


def test_from_host_memory_nothing_is_read(model: Path):
    case = measure_case(Store("preadv", tier="host"), model, sequences=1, passes=1, rounds=1)
    assert case.alone.keys() == {"compute"}
    assert case.waited["read"] == 0
    assert case.limit_seconds == case.alone["compute"].median_seconds
    assert case.moved_bytes > 0


def test_the_first_pass_of_a_turn_is_not_counted_and_turns_add_up():
    calls = []
    passes = time_passes(lambda: calls.append(1), 3) + time_passes(lambda: calls.append(1), 2)
    assert (len(calls), len(passes.seconds), len(passes.processor_seconds)) == (7, 5, 5)
    lower, upper = passes.quartile_seconds
    assert lower <= passes.median_seconds <= upper


def test_the_dense_twin_has_every_bit_and_is_as_large_as_the_weights(model: Path, tmp_path: Path):
    write_dense(model, tmp_path / "dense.endor")
    with Checkpoint(model) as opened, Checkpoint(tmp_path / "dense.endor") as dense:
        records = pass_records(opened.manifest)
        stored = sum(record.layout.dense_bytes for record in records)
        assert stored <= plan_of_records(dense).read_bytes_per_pass < 1.2 * stored
        assert len(dense.manifest.records) == len(records)
        for name in ("attention.query", "mlp.up", "mlp_norm.scale"):
            if name in records[1].layout.names:
                expected = opened.read_tensor("layers.1", name)
                np.testing.assert_array_equal(dense.read_tensor("layers.1", name), expected)
        assert np.count_nonzero(dense.read_tensor("layers.1", records[1].layout.names[0]))


def test_steps_and_errors_of_a_sweep_are_the_worst_ones():
    def point(seconds: float, predicted: float) -> SweepPoint:
        prediction = Prediction(1, 0.0, 0.0, 0.0, 0.0, predicted, "compute", False)
        return SweepPoint(Predicted(plan_of("disk"), prediction), samples(seconds))

    points = [point(1.0, 1.0), point(0.5, 0.4), point(0.625, 0.625)]
    assert worst_step(points) == pytest.approx(0.8)
    assert worst_error(points) == pytest.approx(0.25)
    assert worst_step([]) == 1
    assert worst_error([SweepPoint(Predicted(plan_of("disk"), None), samples(1.0))]) is None


def test_budgets_go_from_next_to_nothing_resident_to_everything(model: Path):
    with Checkpoint(model, reader="preadv") as checkpoint:
        resident = [each.resident_bytes for each in predict_sweep(checkpoint, budgets=4)]
        everything = sum(record.demand.buffer_bytes for record in pass_records(checkpoint.manifest))
    assert resident == sorted(resident)
    assert resident[0] <= 0.3 * everything
    assert resident[-1] == everything


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader": "mmap"}, r"reader: got mmap, expected direct or preadv or tensorstore"),
        ({"sequences": ()}, r"sequences: got \(\), expected numbers from 1 on"),
        ({"budgets": 1}, r"budgets: got 1, expected 2 or more, or 0 for none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        StreamSettings(**settings)


def test_a_model_that_is_neither_there_nor_known_is_usage(tmp_path: Path):
    done = CliRunner().invoke(app, ["bench", "stream", "--model", "nowhere", "--work-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.startswith("endor: model: got 'nowhere'")


def test_a_run_writes_predictions_first_then_a_record_and_a_picture(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    before = {}
    measure_order = stream.measure_order

    def measuring(*arguments, **options):
        before.update(json.loads(record.read_text()))
        return measure_order(*arguments, **options)

    monkeypatch.setattr(stream, "measure_order", measuring)
    options = [
        "--model",
        model,
        "--work-dir",
        tmp_path,
        "--rate",
        "2MB",
        "--reader",
        "preadv",
        "--passes",
        2,
    ]
    options += ["--rounds", 1, "--sweep", 2, "--sequences", 2, "--record", record]
    if importlib.util.find_spec("matplotlib") is not None:
        options += ["--plot", plot]
    done = CliRunner().invoke(app, ["bench", "stream", *map(str, options)])
    assert done.exit_code == 0, done.output
    assert "put(i+2) was issued before every step" in done.stdout
    assert (before["benchmark"], len(before["sweep"])) == ("stream", 2)
    values = json.loads(record.read_text())
    assert values["predicted_at"] == before["predicted_at"]
    measured = [(case["store"], case["sequences"]) for case in values["cases"]]
    assert measured == [("page cache (preadv)", 2), ("page cache (mmap)", 2), ("0.002 GB/s", 2)]
    for case in values["cases"]:
        stages = {"compute"} if "mmap" in case["store"] else {"read", "compute"}
        assert case["alone"].keys() == stages
        assert len(case["loop"]["seconds"]) == 2
        assert sum(case["waited"].values()) < 1.01
    slow = values["cases"][2]
    assert slow["slowest"] == "read"
    assert slow["alone"]["read"]["median_seconds"] >= 0.9 * slow["moved_bytes"] / 2e6
    assert values["cases"][0]["dense_bytes"] > 1.2 * values["cases"][0]["moved_bytes"]
    assert [point["sequences"] for point in values["batch"]] == [2]
    assert (values["order"]["kept"], values["link"]) == (True, None)
    assert {"commit", "versions", "machine", "worst_step", "batch_gain"} <= values.keys()
    assert not plot.exists() or plot.read_bytes().startswith(b"<?xml")


def test_stores_are_named_by_what_they_are():
    stores = Store("direct"), Store("preadv"), Store("direct", 5e8), Store("direct", tier="host")
    names = ["disk (direct)", "page cache (preadv)", "0.5 GB/s", "host memory"]
    assert [store.name for store in stores] == names
