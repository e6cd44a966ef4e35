"""Every verb: what it prints for people and for machines, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.store.manifest import read_manifest
from tests.generate.budgets import smallest

GENERATE_KEYS = {
    *("text", "token_ids", "prompt_tokens", "prompt_tokens_per_second", "generation_tokens_per_second"),
    *("bytes_read", "bytes_transferred", "peak_device_bytes", "peak_host_bytes", "plan"),
    *("prediction", "achieved", "plans", "bytes_fetched"),
    *("cached_tokens", "finish_reason", "expected_peak_host_bytes", "reader"),
}
CONVERT_KEYS = {
    *("path", "dense_bytes", "stored_bytes", "ratio", "negative_zeros", "signatures", "resumed_parts"),
    *("expected_peak_host_bytes", "peak_host_bytes"),
}
INFO_KEYS = {
    *(
        "layers",
        "parameters",
        "dense_bytes",
        "stored_bytes",
        "ratio",
        "sparsity",
        "layer_sparsity",
        "signatures",
        "shards",
        "tensors",
    ),
}
TENSOR_KEYS = {"name", "shape", "dtype", "codec", "sparsity", "stored_bytes"}


def values(done) -> dict:
    """What --json printed: all of stdout is one JSON object."""
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def assert_one_line(stderr: str) -> None:
    assert "Traceback" not in stderr
    assert stderr.startswith("endor: ")
    assert stderr.count("\n") == 1


def test_convert(run_command, source, tmp_path):
    arguments = ("convert", source, tmp_path / "dst", "--prune", "magnitude", "--dtype", "bfloat16")
    result = values(run_command(*arguments, "--json"))
    assert set(result) == CONVERT_KEYS
    manifest = read_manifest(tmp_path / "dst")
    assert manifest.made["settings"]["sparsity"] == 0.5
    shown = values(run_command("info", tmp_path / "dst", "--json"))
    assert result["stored_bytes"] == shown["stored_bytes"] > manifest.stored_bytes
    done = run_command("convert", source, tmp_path / "again", "--quiet")
    assert done.code == 0
    assert done.stderr == ""
    # One line, however long the path is, and nothing in it is taken for markup.
    done = run_command("convert", source, tmp_path / ("[b]" + "long" * 30), "--quiet")
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"{tmp_path}/[b]longlong")


def test_a_dry_run_writes_nothing_and_comes_close(run_command, source, tmp_path):
    expected = values(run_command("convert", source, tmp_path / "dst", "--dry-run", "--json"))
    assert not (tmp_path / "dst").exists()
    assert expected["path"] is None
    real = values(run_command("convert", source, tmp_path / "dst", "--json"))
    assert expected["dense_bytes"] == real["dense_bytes"]
    assert expected["stored_bytes"] == pytest.approx(real["stored_bytes"], rel=0.1)
    words = run_command("convert", source, tmp_path / "other", "--dry-run")
    assert words.stdout.startswith("would write about ")


def test_reshard(run_command, checkpoint, tmp_path):
    result = values(run_command("reshard", checkpoint, tmp_path / "cut", "--shards", "3", "--json"))
    shown = values(run_command("info", tmp_path / "cut", "--json"))
    expected = {"path": str(tmp_path / "cut"), "shards": 3, "stored_bytes": shown["stored_bytes"]}
    assert result == expected
    assert shown["shards"] == 3
    assert values(run_command("info", checkpoint, "--json"))["shards"] == 1
    assert re.search(r"shards +3 *\n", run_command("info", tmp_path / "cut").stdout)
    done = run_command("reshard", tmp_path / "cut", tmp_path / "back", "--shards", "1", "--quiet")
    assert done.stdout.startswith(f"{tmp_path / 'back'}: ")
    assert done.stdout.endswith(", shards: 1\n")
    assert done.stderr == ""
    done = run_command("reshard", checkpoint, tmp_path / "cut", "--shards", "3")
    assert done.code == 1
    assert_one_line(done.stderr)


def test_export(run_command, checkpoint, tmp_path):
    result = values(run_command("export", checkpoint, tmp_path / "out", "--json"))
    assert result == {
        "path": str(tmp_path / "out"),
        "files": ["config.json", "model.safetensors", "tokenizer.json"],
    }
    done = run_command("export", checkpoint, tmp_path / "out")
    assert done.code == 1
    assert_one_line(done.stderr)


def test_info(run_command, checkpoint):
    result = values(run_command("info", checkpoint, "--json"))
    assert set(result) == INFO_KEYS
    assert all(set(tensor) == TENSOR_KEYS for tensor in result["tensors"])
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    assert result["stored_bytes"] == sum(file.stat().st_size for file in files)
    assert result["layers"] == 8
    assert result["parameters"] == sum(np.prod(t["shape"]) for t in result["tensors"])
    assert result["ratio"] == result["dense_bytes"] / result["stored_bytes"]
    up = next(t for t in result["tensors"] if t["name"] == "layers.0.mlp.up.weight")
    assert (up["shape"], up["dtype"], up["sparsity"]) == ([96, 64], "bfloat16", 0.5)
    assert result["layer_sparsity"] == 0.5 > result["sparsity"]
    words = run_command("info", checkpoint, "--tensors").stdout
    assert "layers.7.mlp.up.weight" in words
    assert "by: endor_jax" in words


@pytest.mark.parametrize("subject", ["checkpoint", "source", "config"])
def test_plan(run_command, source, checkpoint, subject):
    path = {"checkpoint": checkpoint, "source": source, "config": source / "config.json"}[subject]
    dtype = [] if subject == "checkpoint" else ["--dtype", "bfloat16", "--sparsity", "0.5"]
    device, host = smallest(checkpoint)
    budget = ["--device-memory", str(device + 60_000), "--host-memory", str(host + 20_000)]
    result = values(run_command("plan", path, *dtype, *budget, "--json"))
    assert result["read_bytes_per_pass"] > 0
    assert result["device_bytes"] <= result["device_budget_bytes"] == device + 60_000
    assert result["stored_bytes"] == pytest.approx(read_manifest(checkpoint).stored_bytes, rel=0.1)
    assert sum(name.startswith("layers.") for name in result["tiers"]) == 8
    words = run_command("plan", path, *dtype).stdout
    assert "KV cache" in words
    assert "0 B read, 0 B transferred" in words


def test_plan_knows_what_is_settled_and_what_is_wrong(run_command, checkpoint, tmp_path):
    done = run_command("plan", checkpoint, "--sparsity", "0.5")
    assert done.code == 1
    assert "settled" in done.stderr
    (tmp_path / "config.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    for name in ("config.json", "broken.json", "absent.json"):
        done = run_command("plan", tmp_path / name)
        assert done.code == 1
        assert name in done.stderr
        assert_one_line(done.stderr)


def test_generate(run_command, checkpoint):
    arguments = ("generate", checkpoint, "-p", "Hello", "--max-tokens", "12")
    done = run_command(*arguments, "--json")
    result = values(done)
    assert set(result) == GENERATE_KEYS
    assert result["prompt_tokens"] == 5
    assert len(result["token_ids"]) == 12
    assert result["bytes_read"] == 12 * result["plan"]["read_bytes_per_pass"]
    assert result["text"] in done.stderr
    with endor.load(checkpoint) as model:
        assert model.complete("Hello", max_tokens=12).text == result["text"]
    words = run_command(*arguments)
    assert words.stdout == result["text"] + "\n"
    assert "tokens/s" in words.stderr
    quiet = run_command(*arguments, "--json", "--quiet")
    assert quiet.stderr == ""
    assert "records" in run_command(*arguments, "--verbose").stderr


def test_generate_from_stdin_and_by_seed(run_command, checkpoint):
    arguments = ("generate", checkpoint, "--max-tokens", "8", "--temp", "1", "--top-p", "0.9", "--json")
    given = values(run_command(*arguments, "--seed", "3", "-p", "Grüße\n"))
    read = values(run_command(*arguments, "--seed", "3", "-p", "-", stdin="Grüße\n"))
    assert read["token_ids"] == given["token_ids"]
    assert read["prompt_tokens"] == len("Grüße\n".encode())
    other = values(run_command(*arguments, "--seed", "4", "-p", "Grüße\n"))
    assert other["token_ids"] != given["token_ids"]


def test_generate_streams_under_a_budget(run_command, checkpoint):
    device, host = smallest(checkpoint, context=128)
    arguments = ("generate", checkpoint, "-p", "a", "--max-tokens", "5", "--context", "128", "--json")
    whole = values(run_command(*arguments))
    small = values(run_command(*arguments, "--device-memory", str(device), "--host-memory", str(host)))
    assert small["token_ids"] == whole["token_ids"]
    assert whole["bytes_read"] == 0
    assert small["bytes_read"] == 5 * small["plan"]["read_bytes_per_pass"] > 0


def test_what_does_not_fit_exits_3_with_the_plan(run_command, checkpoint):
    for verb in (("plan", checkpoint), ("generate", checkpoint, "-p", "a")):
        done = run_command(*verb, "--device-memory", "1KiB")
        assert done.code == 3
        assert done.stdout == ""
        assert "(--device-memory). The smallest plan:\nrecords " in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("record", ["layers.3", "embedding"])
def test_a_damaged_part_exits_4_and_is_named(run_command, checkpoint, tmp_path, record):
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    file = damaged / "parts" / f"{record}.0" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[300] ^= 16
    file.write_bytes(data)
    device, host = smallest(checkpoint)
    budget = ("--device-memory", str(device), "--host-memory", str(host))
    for verb in (("generate", damaged, "-p", "a", *budget), ("export", damaged, tmp_path / "out")):
        done = run_command(*verb, "--quiet")
        assert done.code == 4
        assert_one_line(done.stderr)
        assert str(damaged / "parts" / f"{record}.0") in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_damaged_manifest_exits_4(run_command, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    manifest = tmp_path / "damaged" / "endor.json"
    manifest.write_text(manifest.read_text().replace('"negative_zeros": 0', '"negative_zeros": 1'))
    done = run_command("info", tmp_path / "damaged")
    assert done.code == 4
    assert_one_line(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "nowhere", "dst"),
        ("reshard", "nowhere", "out", "--shards", "2"),
        ("export", "nowhere", "out"),
        ("info", "nowhere"),
        ("plan", "nowhere"),
        ("generate", "nowhere", "-p", "a"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_path_exits_1(run_command, arguments):
    done = run_command(*arguments)
    assert done.code == 1
    assert "nowhere" in done.stderr
    assert_one_line(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "a", "b", "--sparse", "0.5"),
        ("generate", "a"),
        ("generate", "a", "-p", "b", "--max-tokens", "0"),
        ("generate", "a", "-p", "b", "--seed", "one"),
        ("reshard", "a", "b"),
        ("reshard", "a", "b", "--shards", "0"),
        ("convert", "a", "b", "--shards", "0"),
        ("info",),
        ("plam",),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(run_command, arguments):
    done = run_command(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temp", "-1"), "temperature -1.0"),
        (("--top-p", "0"), "top_p 0.0"),
        (("--seed", "-1"), "seed -1"),
        (("--device-memory", "8XB"), "'8XB'"),
        (("--context", "4096"), "4096 tokens"),
        (("--max-tokens", "1000"), "at most 512 in all"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_wrong_values_are_usage_errors(run_command, checkpoint, arguments, message):
    done = run_command("generate", checkpoint, "-p", "a", *arguments)
    # How many tokens fit depends on the prompt too: no option is wrong by itself.
    assert done.code == (1 if arguments[0] == "--max-tokens" else 2)
    assert message in done.stderr
    assert_one_line(done.stderr)


def test_the_system_s_errors_are_one_line_too(run_command, source, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_command("convert", source, tmp_path / "file" / "below", "-q")
    assert done.code == 1
    assert_one_line(done.stderr)


def test_doctor(run_command):
    result = values(run_command("doctor", "--json"))
    assert {"endor_jax", "python", "packages", "devices", "expand"} <= set(result)
    assert any(line.startswith("jax ") for line in result["packages"])
    rates = result["rates"]
    assert (rates["link"], rates["link_bytes_per_second"]) == ("shared", None)
    assert all(rates[f"{name}_per_second"] > 0 for name in ("linear_weights", "expand_bytes", "copy_bytes"))
    words = run_command("doctor").stdout
    assert "devices" in words
    assert "billion weights/s" in words


def test_version(run_command):
    done = run_command("--version")
    assert (done.code, done.stdout) == (0, f"endor {endor.__version__}\n")


def test_plan_of_parameter_trees_says_what_they_are(run_command, tmp_path):
    endor.save(tmp_path / "trees", [{"w": np.ones((64, 64), np.float32)}])
    done = run_command("plan", tmp_path / "trees")
    assert done.code == 1
    assert "parameter trees without a model" in done.stderr
