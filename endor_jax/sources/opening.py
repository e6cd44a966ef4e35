"""Opening a checkpoint by what is found at a path."""

from __future__ import annotations

from pathlib import Path

from endor_jax.errors import NotFoundError, UnsupportedError
from endor_jax.sources.gguf import open_gguf
from endor_jax.sources.gguf_header import MAGIC
from endor_jax.sources.safetensors import INDEX_FILE, open_safetensors
from endor_jax.sources.source import Source

_SHOWN = 8  # names in an error message


def open_source(path: str | Path) -> Source:
    """Open a directory of safetensors files, or a GGUF file whatever its name.

    Raises NotFoundError if there is nothing at `path`, UnsupportedError with what was found if it is neither,
    and what the reader raises for what it cannot use.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(
            str(path),
            got="nothing at that path",
            expected="a directory of safetensors files, or a .gguf file",
            fix="check the spelling; download the model first",
        )
    if path.is_dir():
        if (path / INDEX_FILE).is_file() or next(path.glob("*.safetensors"), None):
            return open_safetensors(path)
        names = sorted(child.name for child in path.iterdir())
        found = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise _unsupported(path, got=f"a directory with {found or 'nothing in it'}")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return open_gguf(path)
    if path.suffix == ".gguf":
        raise _unsupported(path, got="a file that is called .gguf and does not begin with its magic")
    raise _unsupported(path, got="a file of another kind")


def _unsupported(path: Path, *, got: str) -> UnsupportedError:
    return UnsupportedError(
        str(path),
        got=got,
        expected="a directory with *.safetensors and config.json, or a GGUF file",
        fix="for a single .safetensors file give its directory; save other formats with transformers' "
        "`save_pretrained` first",
    )
