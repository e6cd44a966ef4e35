"""Imports point down the layers that docs/design.md draws; folders on one line never import each other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "endor_jax"


def drawn_layers() -> dict[str, int]:
    """Folder or module → line number in the drawing, counted from the bottom."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = re.search(r"## Layers.*?```\n(.*?)```", text, re.DOTALL)
    assert block
    lines = [re.split(r"\s{2,}", line.strip()) for line in block[1].strip().splitlines()]
    # A remark behind a name ("search   highest sparsity ...") is no name.
    return {
        name: height
        for height, names in enumerate(reversed(lines))
        for name in names
        if re.fullmatch(r"[a-z_]+", name)
    }


def imports(path: Path) -> set[str]:
    """Folders or modules directly below endor_jax that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "endor_jax" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("endor_jax.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def place(path: Path) -> str:
    """The folder or module directly below endor_jax that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layers, here = drawn_layers(), place(path)
    for other in imports(path) - {here}:
        assert layers[other] < layers[here], (
            f"{here} (level {layers[here]}) imports {other} ({layers[other]})"
        )


def test_every_folder_is_drawn() -> None:
    assert {place(path) for path in FILES} <= drawn_layers().keys()


def test_only_the_store_imports_tensorstore() -> None:
    users = {
        place(path) for path in FILES if re.search(r"^\s*(import|from) tensorstore", path.read_text(), re.M)
    }
    assert users == {"store"}


def test_only_the_command_line_prints() -> None:
    printing = {
        place(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_say_what_they_are_and_stay_small(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "the first line says what the file is"
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert text.count("\n") <= 400
