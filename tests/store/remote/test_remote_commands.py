"""The command line on a checkpoint in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from tests.store.remote.object_server import KEY_ID, SECRET, Proxy, failure


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def answer(*arguments: str) -> dict:
    code, stdout, stderr = run(*arguments, "--json", "--quiet")
    assert code == 0, stderr
    return json.loads(stdout)


def test_verbs_say_what_they_say_of_the_local_twin(uploaded: str, local: Path) -> None:
    assert answer("info", uploaded) == answer("info", str(local))
    here, there = answer("verify", str(local)), answer("verify", uploaded)
    assert {**there, "path": None, "seconds": 0} == {**here, "path": None, "seconds": 0}
    assert answer("plan", uploaded)["tiers"] == answer("plan", str(local))["tiers"]
    assert "none: a network is not measured" in run("plan", uploaded)[1]


def test_generate(uploaded: str, local: Path, expected: list[int], tmp_path: Path) -> None:
    given = ("-p", "Once", "--max-tokens", str(len(expected)), "--ignore-chat-template")
    cache = ("--cache-size", "1MiB", "--cache-dir", str(tmp_path / "here"))
    first = answer("generate", uploaded, *given, *cache)
    assert first["token_ids"] == expected
    with endor.open(local) as twin:
        assert first["bytes_fetched"] >= twin.manifest.stored_bytes
    again = answer("generate", uploaded, *given, *cache)
    assert again["token_ids"] == expected
    assert 0 < again["bytes_fetched"] < first["bytes_fetched"] / 3
    assert list((tmp_path / "here/cached").iterdir())


def test_errors_are_one_line_without_secrets(uploaded: str, local: Path, proxy: Proxy) -> None:
    code, _, stderr = run("generate", str(local), "-p", "x", "--cache-size", "1MiB")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "a cache for local files" in stderr
    assert "doctor, which measures disks" in run("doctor", uploaded)[2]
    proxy.answer = lambda request, found: failure(403, "SignatureDoesNotMatch", "Check your key.")
    for arguments in (("verify", uploaded), ("info", uploaded), ("generate", uploaded, "-p", "x", "-v")):
        code, stdout, stderr = run(*arguments)
        assert code == 1
        assert stderr.count("\n") == 1
        assert "Check your key. (HTTP status 403)" in stderr
        assert SECRET not in stdout + stderr
        assert KEY_ID not in stdout + stderr


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_verify_finds_damage(mine: str, damage: str) -> None:
    from tests.store.remote.test_remote_reading import objects_at

    store, name = objects_at(mine), "parts/layers.1.0/c/0"
    if damage == "missing":
        store.delete(name)
        store.put("mine.txt", b"")
    else:
        data = bytearray(store.read(name))
        data[-10] ^= 1  # in the index, which no reader of ours looks at
        store.put(name, bytes(data))
    code, _, stderr = run("verify", mine)
    assert code == 4
    assert "file parts/layers.1.0/c/0, record layers.1: got" in stderr
    assert ("mine.txt belongs to no record" in stderr) is (damage == "missing")
