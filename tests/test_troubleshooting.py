"""docs/troubleshooting.md: every error class, exit code, bases, and a message that is really raised."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax import errors
from endor_jax.cli.main import app
from endor_jax.errors import EndorError
from endor_jax.generate.sampling import Sampler
from endor_jax.search import bisection
from endor_jax.sources import gguf
from endor_jax.store.journal import Journal
from tests.search.faked import Faked, search
from tests.tiny_models import write_tiny

TROUBLE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, EndorError)
}


def checkpoint_in(directory: Path) -> Path:
    """A tiny model converted to `model.endor`."""
    endor.convert(write_tiny(directory / "source", tokenizer=True), directory / "model.endor")
    return directory / "model.endor"


def sections() -> dict[str, str]:
    """The text below each error class's heading."""
    return {
        name: body for name, body in re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TROUBLE, re.DOTALL | re.M)
    }


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def invalid_input(directory: Path) -> None:
    with endor.load(checkpoint_in(directory), device_memory="64MiB", host_memory="64MiB") as model:
        model.generate([1] * 500, max_tokens=100)


def unsupported(directory: Path) -> None:
    edit_json(write_tiny(directory / "source") / "config.json", model_type="mixtral")
    endor.convert(directory / "source", directory / "model.endor")


def incomplete_checkpoint(directory: Path) -> None:
    path = checkpoint_in(directory)
    (path / "parts" / "layers.0.0" / "c" / "0").unlink()
    endor.load(path)


def corrupt_checkpoint(directory: Path) -> None:
    path = checkpoint_in(directory)
    data = bytearray((path / "parts" / "layers.0.0" / "c" / "0").read_bytes())
    data[1000] ^= 1
    (path / "parts" / "layers.0.0" / "c" / "0").write_bytes(data)
    with endor.open(path) as checkpoint:
        checkpoint.read_record(checkpoint.manifest.record("layers.0"))


def destination_busy(directory: Path) -> None:
    (directory / "model.endor").mkdir()
    journal = Journal(directory / "model.endor")
    try:
        checkpoint_in(directory)
    finally:
        journal.close()


def resumed_otherwise(directory: Path) -> None:
    source, destination = write_tiny(directory / "source"), directory / "model.endor"

    def interrupt(what: str, done: int, total: int) -> None:
        if len(list(destination.glob("parts/*"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endor.convert(source, destination, prune="magnitude", sparsity=0.5, progress=interrupt)
    endor.convert(source, destination, prune="magnitude", sparsity=0.3)


def full(directory: Path) -> None:
    source, fields = write_tiny(directory / "source"), list(os.statvfs(directory))
    fields[3] = fields[4] = 40  # f_bfree, f_bavail: blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
        endor.convert(source, directory / "model.endor")


def not_good_enough(directory: Path) -> None:
    source = write_tiny(directory / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisection, "HIGHEST", 50)
        Faked(lambda percent: 0.05, lambda percent: 0.06).install(patch)
        search(source, directory / "model.endor", max_increase=0.055)


def missing_dependency(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        gguf._package()


def used_after_close(directory: Path) -> None:
    with endor.load(checkpoint_in(directory), device_memory="64MiB", host_memory="64MiB") as model:
        pass
    model.complete([1], max_tokens=1)


def nobody_there(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_afterwards:
        port = closed_afterwards.getsockname()[1]
    endor.join(f"127.0.0.1:{port}", processes=2, index=1, join_seconds=0.1)


def base(directory: Path) -> None:
    raise EndorError("where", got="what was found", expected="what should be", fix="what to do")


RAISERS: dict[str, Callable[[Path], object]] = {
    "EndorError": base,
    "InvalidInputError": invalid_input,
    "OptionError": lambda directory: Sampler(top_p=1.5),
    "UnsupportedError": unsupported,
    "NotFoundError": lambda directory: endor.load(directory / "nothing"),
    "IncompleteCheckpointError": incomplete_checkpoint,
    "DestinationExistsError": lambda directory: endor.convert(directory / "source", checkpoint_in(directory)),
    "DestinationBusyError": destination_busy,
    "ResumeError": resumed_otherwise,
    "StorageError": full,
    "CorruptCheckpointError": corrupt_checkpoint,
    "DoesNotFitError": lambda directory: endor.load(
        checkpoint_in(directory), device_memory="1MiB", host_memory="1MiB"
    ),
    "QualityError": not_good_enough,
    "MissingDependencyError": missing_dependency,
    "StreamError": used_after_close,
    "PeerError": nobody_there,
}


def normalised(message: str, directory: Path) -> str:
    """The first line, paths and digests as the document writes them."""
    message = re.sub(rf"{re.escape(str(directory))}[\w./-]*", "PATH", message.splitlines()[0])
    return re.sub(r"\b[0-9a-f]{16}\b", "DIGEST", message)


def without_figures(message: str) -> str:
    """What a plan needs changes with the code, and free space with the day: only the words are compared."""
    return re.sub(r"[\d.,]+ [KMG]?i?B\b|[\d,]{4,}", "N", message)


def test_every_error_class_has_a_section() -> None:
    assert list(sections()) == list(CLASSES)
    assert set(RAISERS) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_exit_code_and_bases_are_true(name: str) -> None:
    first = sections()[name].strip().splitlines()[0]
    code = re.match(r"Exit code (\d+)(?:, also an? ([^.]*))?\.", first)
    assert code, first
    assert int(code[1]) == CLASSES[name].exit_code
    others = {
        base.__name__ for base in CLASSES[name].__mro__[1:] if base not in (object, Exception, EndorError)
    }
    named = set(re.findall(r"`(\w+)`", code[2] or ""))
    assert named <= others
    assert {base.__name__ for base in CLASSES[name].__bases__} - {"EndorError", "Exception"} <= named


def test_the_table_of_exit_codes_names_every_class_with_its_own() -> None:
    rows = dict(re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", TROUBLE, re.M))
    assert {"0", "1", "2", "3", "4", "130"} <= rows.keys()
    named = {name: int(code) for code, text in rows.items() for name in re.findall(r"`(\w+)`", text)}
    assert named == {name: value.exit_code for name, value in CLASSES.items() if value.exit_code != 1}


@pytest.mark.parametrize("name", CLASSES)
def test_its_message_is_what_is_raised(name: str, tmp_path: Path) -> None:
    with pytest.raises(CLASSES[name]) as caught:
        RAISERS[name](tmp_path)
    assert caught.type is CLASSES[name]
    shown = re.search(r"```text\n(.*?)\n```", sections()[name], re.DOTALL)
    assert shown
    raised = normalised(str(caught.value), tmp_path)
    assert without_figures(raised) == without_figures(shown[1])


@pytest.mark.parametrize("name", ["OptionError", "DoesNotFitError", "NotFoundError"])
def test_the_command_line_ends_with_the_code(name: str, tmp_path: Path) -> None:
    arguments = {
        "OptionError": [checkpoint_in(tmp_path), "--top-p", "1.5"],
        "DoesNotFitError": [tmp_path / "model.endor", "--device-memory", "1MiB"],
        "NotFoundError": [tmp_path / "nothing"],
    }[name]
    done = CliRunner().invoke(app, ["generate", *map(str, arguments), "-p", "a"])
    assert done.exit_code == CLASSES[name].exit_code
    assert done.stderr.startswith("endor: ")


def test_every_option_that_it_names_exists() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    parameters = [parameter for command in commands for parameter in command.params]
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--local-dir"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TROUBLE)) <= known
