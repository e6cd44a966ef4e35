"""README does what it says: its Python runs, its commands exist, and CI runs its second block as it is."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import endor_jax as endor
from endor_jax.cli.main import app
from tests.tiny_models import write_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_ci_runs_the_second_block_line_for_line() -> None:
    assert blocks("sh")[1] in (ROOT / ".ci" / "run").read_text()


def test_the_first_block_ends_with_the_demo() -> None:
    assert blocks("sh")[0].splitlines()[-1] == "endor demo"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    """Every `endor VERB --option` of a shell block parses up to its values."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in blocks("sh", path.read_text()):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "endor":
                continue
            options = {name for parameter in commands[words[1]].params for name in parameter.opts}
            assert {word for word in words[2:] if word.startswith("-") and len(word) > 1} <= options


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endor.convert(write_tiny(tmp_path / "source", tokenizer=True), tmp_path / "smol.endor")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 2
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
