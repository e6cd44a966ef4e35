"""Choosing a reader by what is at a path; whatever else is there gets one line that says what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from endor_jax.errors import EndorError, InvalidInputError, NotFoundError, UnsupportedError
from endor_jax.sources import locate, open_source


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing at that path.*check the spelling"):
        open_source(str(tmp_path / "absent"))
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="nothing at that path"):
        open_source(tmp_path / "file" / "below")


def test_directory_of_other_things_lists_them(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="nothing in it"):
        open_source(tmp_path)
    for number in range(10):
        (tmp_path / f"pytorch_model-{number}.bin").touch()
    with pytest.raises(UnsupportedError, match=r"pytorch_model-0\.bin, .*-7\.bin, \.\.\.,.*save_pretrained"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="save_pretrained"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.gguf", "magic"), ("pytorch_model.bin", "give its directory"), ("empty.safetensors", "another")],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(UnsupportedError, match=message):
        open_source(tmp_path / name)


def test_text_image_and_empty_files(tmp_path: Path) -> None:
    contents = {
        "notes.txt": b"A model.\n",
        "cat.png": b"\x89PNG\r\n\x1a\n\0\0",
        "words.yaml": b"{}",
        "none": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnsupportedError, match=r"a GGUF file; for a file of weights give its"):
            open_source(tmp_path / name)


def test_directory_with_a_config_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedError, match=r"config\.json.*the weights are missing: download them"):
        open_source(tmp_path)


def test_directory_with_weights_only(tmp_path: Path) -> None:
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(NotFoundError, match=r"config\.json: got no such file.*fetch it"):
        open_source(tmp_path)


def test_directory_with_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match=r"model\.gguf.*give the \.gguf file itself"):
        open_source(tmp_path)


@pytest.mark.parametrize("architecture", ['"mamba"', "3", "null", "[]", '"' + "x" * 5000 + '"'])
def test_unknown_architecture(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": {architecture}}}')
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UnsupportedError, match=r"model_type in config\.json.*expected one of llama,.* opt"
    ) as raised:
        locate(open_source(tmp_path))
    assert len(str(raised.value)) < 500


@pytest.fixture(
    params=["", "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a directory that is a checkpoint but for the one thing that is missing at `place`."""
    root = tmp_path / "model"
    if request.param:
        root.mkdir()
        (root / "config.json").write_text("{}")
        if "index" not in request.param:
            save_file({"w": np.zeros(2, np.float32)}, root / "model.safetensors")
            (root / "model.safetensors").chmod(0o644)
    path = root / request.param
    path.unlink(missing_ok=True)
    return path


def opened(path: Path) -> EndorError:
    """The error of opening and reading everything; there must be one."""
    root = path if path.name == "model" else path.parent
    with pytest.raises(EndorError) as raised, open_source(root) as source:
        source.files()
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    return raised.value


def test_broken_link(place: Path) -> None:
    place.symlink_to("nowhere")
    error = opened(place)
    assert isinstance(error, NotFoundError)
    assert error.got == "a link to nowhere, which is not there"


def test_link_to_itself(place: Path) -> None:
    place.symlink_to(place)
    assert "symbolic links" in opened(place).got


def test_pipes_sockets_and_devices_are_not_opened(place: Path) -> None:
    """Opening the pipe would wait for ever, as nobody writes."""
    os.mkfifo(place)
    assert opened(place).got == "a pipe, socket or device"
    place.unlink()
    place.symlink_to("/dev/zero")
    assert opened(place).got == "a pipe, socket or device"
    place.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        assert opened(place).got == "a pipe, socket or device"


def test_directory_in_place_of_a_file(place: Path) -> None:
    if place.name == "model":
        return
    place.mkdir()
    error = opened(place)
    assert isinstance(error, InvalidInputError)
    assert error.got == "a directory"


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[None]:
    """A user whom permissions bind, if the tests run as one whom they do not."""
    if os.geteuid() != 0:
        yield
        return
    for path in tmp_path.resolve().parents:
        if path.stat().st_mode & 0o011 != 0o011:
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_what_may_not_be_read(place: Path, request: pytest.FixtureRequest) -> None:
    if place.name == "model":
        place.mkdir()
    else:
        place.write_bytes(bytes(100))
    place.chmod(0)
    request.getfixturevalue("nobody")
    error = opened(place)
    assert isinstance(error, InvalidInputError)
    assert (error.got, "permissions" in error.fix) == ("Permission denied", True)
