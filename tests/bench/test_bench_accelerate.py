"""`endor bench accelerate`: ours and Accelerate's ways with the same weights, in turns, in processes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from endor_jax.bench import accelerate, accelerate_peer, offload_contenders, peers
from endor_jax.bench.accelerate import OffloadCase, OffloadRecord, OffloadSettings, OffloadTiming, check_same
from endor_jax.bench.contender_process import Turn
from endor_jax.bench.environment import Environment
from endor_jax.bench.offload_contenders import Files, files_for, ours, prepare
from endor_jax.bench.offload_contenders import peers as peers_of
from endor_jax.bench.offload_limits import Rate, disk_rate, link_bytes_per_second, moving_rate
from endor_jax.bench.streamed import plan_in_tier, streamed
from endor_jax.bench.workloads import write_workload
from endor_jax.cli.bench.accelerate import accelerate_table
from endor_jax.cli.main import app
from endor_jax.conversion.api import convert
from endor_jax.conversion.export import export
from endor_jax.errors import EndorError, InvalidInputError, MissingDependencyError, OptionError

PROMPT = (100, 101, 102)


def turn(*seconds: float, ids: tuple[int, ...] = (1, 2, 3, 4), share: float = 0.0) -> Turn:
    return Turn(ids, 0.5, seconds, share, 10**9)


def hand_made() -> OffloadRecord:
    ours = OffloadTiming("ours", 10**9, (turn(0.4, 0.5), turn(0.6, 0.5)))
    direct = OffloadTiming("ours, direct", 10**9, (turn(0.25, 0.25),))
    peer = OffloadTiming("disk_offload", 2 * 10**9, (turn(2.0, 2.0, ids=(1, 2, 5, 4), share=0.25),))
    case = OffloadCase("cold", Rate("disk", (3e9, 4e9, 8e9)), (ours, direct, peer))
    return OffloadRecord(OffloadSettings(tokens=4), 22, 16, 2, "cpu", (case, case), Environment(None, {}, {}))


def test_ratios_and_limits_follow_from_the_medians():
    record = hand_made()
    ours, direct, peer = record.cases[0].timings
    case = record.cases[0]
    assert ours.median_seconds == 0.5
    assert ours.quartile_seconds == pytest.approx((0.475, 0.525))
    assert OffloadTiming("one", 1, (turn(2.0),)).quartile_seconds == (2.0, 2.0)
    assert [case.times(each, peer) for each in (ours, direct, peer)] == [4.0, 8.0, 1.0]
    assert [case.limit_seconds(each) for each in (ours, peer)] == [0.25, 0.5]
    assert [case.same_tokens(each) for each in (direct, peer)] == [4, 2]
    values = json.loads(json.dumps(record.to_json()))
    assert values["cases"][0]["timings"][0]["times_as_fast_as"] == {"disk_offload": 4.0}
    assert values["cases"][0]["timings"][2]["turns"][0]["token_seconds"] == [2.0, 2.0]
    assert {"commit", "versions", "machine", "settings", "threads", "device"} <= values.keys()


def test_the_table_has_a_row_per_contender_and_a_column_per_peer():
    record = hand_made()
    table = accelerate_table(record, record.cases[0])
    assert [column.header for column in table.columns][3] == "times disk_offload"
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows[0][:4] == ("ours", "0.500", "0.475 to 0.525", "4.00")
    assert rows[2][5:] == ("25%", "25%", "1.00", "2 of 4")
    assert "4.00 GB/s of the disk" in str(table.caption)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_a_picture_is_drawn_of_a_record(tmp_path: Path):
    from endor_jax.bench.plot_accelerate import plot_accelerate

    plot_accelerate(hand_made(), tmp_path / "made" / "picture.svg")
    assert (tmp_path / "made" / "picture.svg").read_bytes().startswith(b"<?xml")


def test_what_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="offload: got tape, expected disk or cpu"):
        OffloadSettings(offload="tape")
    with pytest.raises(OptionError, match="tokens: got 2, expected more than 2, which are not counted"):
        OffloadSettings(tokens=2)
    with pytest.raises(EndorError, match="accelerate, ours: got other tokens than the first time"):
        check_same("ours", (turn(1.0), turn(1.0, ids=(1, 2, 3, 5))))
    monkeypatch.setattr(peers, "installed", lambda name: name != "accelerate")
    with pytest.raises(MissingDependencyError, match="got no accelerate"):
        accelerate.measure_accelerate(tmp_path, settings=OffloadSettings())


LAYERS = 8
"""More than a ring holds."""


@pytest.fixture(scope="module")
def work_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def opt(work_directory: Path) -> Files:
    """All that `prepare` makes, made in this process."""
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    files = files_for(work_directory, "opt-10m", layers=LAYERS, sparsity=0.5)
    source = write_workload(work_directory / "source", "opt-10m", layers=LAYERS)
    for path in (files.checkpoint, files.mapped):
        convert(source, path, prune="magnitude", sparsity=0.5)
    export(files.checkpoint, files.dense)
    accelerate_peer.write_offloaded(files.dense, files.offloaded)
    prepare(files, "opt-10m", layers=LAYERS, sparsity=0.5, report=pytest.fail)  # nothing is left to be made
    return files


@pytest.mark.reference
def test_every_way_gives_the_tokens_of_the_dense_model(opt: Files):
    """Also that of a GPU but for its device: `cpu_offload`, beside ours from host memory."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    dense = {"dense": opt.dense, "device": "cpu", "threads": 1}
    ways = {
        "disk_offload": accelerate_peer.disk_offload(offloaded=opt.offloaded, **dense),
        "device_map": accelerate_peer.device_map(directory=opt.dense.with_name("unused"), **dense),
        "cpu_offload": accelerate_peer.cpu_offload(pinned=False, **dense),
        "disk": streamed(opt.checkpoint, tier="disk", reader="direct", context=64),
        "host": streamed(opt.checkpoint, tier="host", reader=None, context=64),
    }
    tokens, moved = {}, {}
    try:
        for name, way in ways.items():
            with way as model:
                tokens[name] = list(model.generate(PROMPT, 3))
                moved[name] = model.streamed_bytes
                assert model.platform == "cpu"
    finally:
        torch.set_num_threads(threads)
    assert len({tuple(ids) for ids in tokens.values()}) == 1, tokens
    assert moved["device_map"] < moved["disk_offload"]
    assert moved["disk"] < 0.6 * moved["device_map"]
    plan = plan_in_tier(opt.checkpoint, "host", reader=None, context=64)
    assert moved["host"] == plan.transferred_bytes_per_pass


@pytest.mark.reference
def test_files_that_the_peer_reads_have_our_weights(opt: Files):
    index = json.loads((opt.offloaded / "index.json").read_text())
    name = next(name for name in index if name.endswith("layers.3.self_attn.q_proj.weight"))
    stored = (opt.offloaded / f"{name}.dat").read_bytes()
    assert stored.count(b"\0\0") >= len(stored) // 8  # pruned
    assert len(stored) == 2 * 256 * 256


@pytest.mark.reference
def test_limits_are_measured(opt: Files):
    disk = disk_rate(opt.checkpoint)
    assert disk.source == "disk"
    assert disk.measure() > 1e6
    with moving_rate("cpu") as memory:
        assert memory.source == "memory"
        assert memory.measure() > 1e8


def test_the_limit_on_a_gpu_is_the_link(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as it sets it, and put back
    with moving_rate("cuda") as link:
        assert link.source == "link"
    assert link_bytes_per_second() > 1e7  # there is no GPU here: it is a copy in memory


@pytest.mark.reference
def test_torch_without_cuda_is_refused_where_ours_has_a_gpu(opt: Files):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch has CUDA here")
    way = accelerate_peer.cpu_offload(opt.dense, device="cuda", threads=1, pinned=True)
    with pytest.raises(MissingDependencyError, match=r"torch: got torch .* without CUDA"), way:
        pass


def test_on_a_gpu_pinned_memory_takes_part_too(tmp_path: Path):
    files = files_for(tmp_path, "llama-10m", layers=LAYERS, sparsity=0.5)
    on = {device: peers_of(files, offload="cpu", device=device, threads=2) for device in ("cpu", "cuda")}
    names = {device: [contender.name for contender in on[device]] for device in on}
    assert names == {"cpu": ["cpu_offload"], "cuda": ["cpu_offload", "cpu_offload, pinned"]}
    disk = peers_of(files, offload="disk", device="cuda", threads=2)
    assert [contender.name for contender in disk] == ["disk_offload", "device_map"]
    assert all(contender.arguments["device"] == "cuda" for contender in disk)


def test_ours_takes_part_with_several_readers_and_what_is_mapped_has_its_own_files(tmp_path: Path):
    files = files_for(tmp_path, "llama-10m", layers=LAYERS, sparsity=0.5)
    disk = ours(files, offload="disk", context=64)
    assert [contender.name for contender in disk] == ["ours", "ours, direct", "ours, mmap"]
    where = [contender.arguments["checkpoint"] for contender in disk]
    assert where == [files.checkpoint, files.checkpoint, files.mapped]
    (host,) = ours(files, offload="cpu", context=64)
    assert (host.arguments["tier"], host.arguments["reader"]) == ("host", None)


def test_a_model_with_too_few_layers_is_refused(tmp_path: Path):
    source = write_workload(tmp_path / "source", "llama-10m", layers=1)
    convert(source, tmp_path / "m.endor", prune="magnitude", sparsity=0.5)
    way = streamed(tmp_path / "m.endor", tier="disk", reader=None, context=64)
    with pytest.raises(InvalidInputError, match=r"a plan that has layers\.0 elsewhere than in the disk"), way:
        pass


@pytest.mark.reference
def test_the_command_measures_cold_and_warm(work_directory: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    monkeypatch.setattr(offload_contenders, "READERS", (None,))
    monkeypatch.setattr(accelerate, "usable_cpus", lambda: (0,))  # threads of torch wait for each other
    record = work_directory / "record.json"
    options = ["--model", "llama-10m", "--layers", str(LAYERS), "--tokens", "4", "--rounds", "1"]
    options += ["--work-dir", str(work_directory), "--record", str(record)]
    done = CliRunner().invoke(app, ["bench", "accelerate", *options])
    assert done.exit_code == 0, done.output
    assert "GB/s of the disk" in done.stdout
    assert "making and converting llama-10m, 8 layers" in done.stderr
    assert not list(work_directory.glob("llama-10m*/*source*"))
    values = json.loads(record.read_text())
    assert [case["condition"] for case in values["cases"]] == ["warm", "cold"]
    for case in values["cases"]:
        assert [each["contender"] for each in case["timings"]] == ["ours", "disk_offload", "device_map"]
        assert all(len(each["turns"][0]["token_seconds"]) == 2 for each in case["timings"])
        assert all(each["same_tokens_as_ours"] == 4 for each in case["timings"])
    warm, cold = (case["timings"][1]["cached_share"] for case in values["cases"])
    assert cold < 0.1 < 0.9 < warm  # of a file system that drops nothing this cannot be said: use a disk
    assert values["versions"]["accelerate"][0].isdigit()
