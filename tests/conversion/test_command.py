"""`endor convert` and `endor plan` as they talk: what is told beforehand, one line for what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from endor_jax.cli.main import app
from tests.tiny_models import LLAMA, write_tiny


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("command") / "source", tokenizer=True)


def test_memory_is_told_beforehand_and_afterwards(source, tmp_path):
    code, out, _ = run("convert", source, tmp_path / "dst", "--dry-run", "--json")
    dry = json.loads(out)
    assert code == 0
    assert dry["expected_peak_host_bytes"] > 2**26
    assert (dry["path"], dry["peak_host_bytes"], dry["resumed_parts"]) == (None, None, None)
    assert not (tmp_path / "dst").exists()
    code, out, said = run("convert", source, tmp_path / "dst", "--json")
    values = json.loads(out)
    assert code == 0
    assert values.keys() == dry.keys()
    assert values["resumed_parts"] == 0
    assert values["peak_host_bytes"] <= values["expected_peak_host_bytes"]
    assert said.startswith("will write about ")
    assert "of resident memory" in said
    _, out, said = run("convert", source, tmp_path / "again")
    assert "peak memory " in said
    assert out.count("\n") == 1


def test_no_resume_is_an_option(source, tmp_path):
    assert run("convert", source, tmp_path / "dst", "--no-resume")[0] == 0
    code, _, said = run("convert", source, tmp_path / "dst", "--no-resume")
    assert code == 1
    assert said.startswith("endor: destination ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", "1.5"), "endor: sparsity: got 1.5, expected 0 or more and below 1"),
        (("--sparsity", "-0.1"), "endor: sparsity: got -0.1"),
        (("--sparsity", "nan"), "endor: sparsity: got nan"),
        (("--dtype", "int8"), "endor: dtype: got 'int8', expected bfloat16, float16, float32"),
    ],
)
@pytest.mark.parametrize("subject", ["", "config.json"])
def test_bad_options_of_a_plan_are_usage(source, subject, options, message):
    code, _, said = run("plan", source / subject, *options)
    assert code == 2
    assert said.startswith(message)
    assert said.count("\n") == 1


def broken(name: str, tmp_path: Path, source: Path) -> Path:
    """Something that is no model."""
    path = tmp_path / name
    if name == "nowhere":
        return path
    if name == "empty":
        path.mkdir()
    elif name == "cut":
        write_tiny(path)
        (path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:2000])
    elif name == "text.gguf":
        path.write_text("no magic")
    elif name == "magic.gguf":
        path.write_bytes(b"GGUF" + b"\xff" * 100)
    elif name == "unknown":
        write_tiny(path)
        (path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "mamba"}))
    elif name.endswith(".json"):
        contents = {
            "list.json": "[]",
            "text.json": "{",
            "dtype.json": json.dumps(LLAMA | {"dtype": ["float32"]}),
            "int8.json": json.dumps(LLAMA | {"torch_dtype": "int8"}),
            "layers.json": json.dumps(LLAMA | {"num_hidden_layers": "many"}),
            "zero.json": json.dumps(LLAMA | {"hidden_size": 0}),
            "huge.json": json.dumps(LLAMA | {"num_hidden_layers": 10**9}),
        }
        path.write_text(contents[name])
    return path


SOURCES = ("nowhere", "empty", "cut", "text.gguf", "magic.gguf", "unknown")
CONFIGS = ("list.json", "text.json", "dtype.json", "int8.json", "layers.json", "zero.json", "huge.json")


@pytest.mark.parametrize("name", SOURCES + CONFIGS)
@pytest.mark.parametrize("verb", ["plan", "convert"])
def test_odd_inputs_get_one_line(source, tmp_path, verb, name):
    path = broken(name, tmp_path, source)
    code, _, said = run(verb, path, *([tmp_path / "dst", "--dry-run"] if verb == "convert" else []))
    assert code == 1, said
    assert said.startswith("endor: ")
    assert said.count("\n") == 1, said
    assert len(said) < 700
    assert not (tmp_path / "dst").exists()
