"""Opening a checkpoint by what is found at a path.

A directory may hold the same weights in several layouts. One is read, in this order, and the others are left
alone: safetensors, torch's pytorch_model.bin, Flax's flax_model.msgpack, what Orbax wrote.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

from endor_jax.errors import NotFoundError, UnsupportedError
from endor_jax.sources.byte_range import read_range, readable
from endor_jax.sources.gguf import open_gguf
from endor_jax.sources.gguf_header import MAGIC
from endor_jax.sources.lfs_pointer import refuse_pointer
from endor_jax.sources.msgpack_flax import FILE as FLAX_FILE
from endor_jax.sources.msgpack_flax import open_flax_msgpack
from endor_jax.sources.orbax import MARKS, open_orbax
from endor_jax.sources.safetensors import INDEX_FILE, SINGLE_FILE, open_safetensors
from endor_jax.sources.source import Source
from endor_jax.sources.sparse_bitmask import dense_source
from endor_jax.sources.torch_bin import FILE as TORCH_FILE
from endor_jax.sources.torch_bin import open_torch_bin
from endor_jax.store.manifest import MANIFEST_FILE

_SHOWN = 8  # names in an error message
_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".msgpack"}
_TORCH_SHARD = re.compile(r"pytorch_model-[0-9]{5}-of-[0-9]{5}\.bin")
_FLAX_SHARD = re.compile(r"flax_model-[0-9]{5}-of-[0-9]{5}\.msgpack")
_SAFETENSORS = re.compile(r".*\.safetensors", re.DOTALL)


def open_source(path: str | Path) -> Source:
    """Open a directory in one of the layouts of Hugging Face, or a GGUF file whatever its name.

    Raises NotFoundError if there is nothing at `path` or a file is missing, UnsupportedError with what was
    found if it is neither, InvalidInputError if it cannot be read or is a Git LFS pointer, and what the
    reader raises for what it cannot use.
    """
    path = Path(path)
    with readable(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _nothing(path) from error
        names = sorted(child.name for child in path.iterdir()) if stat.S_ISDIR(mode) else []
    if stat.S_ISDIR(mode):
        if MANIFEST_FILE in names:
            raise _unsupported(path, got="a checkpoint of this library", fix="it is converted already")
        return _open_directory(path, names)
    if not stat.S_ISREG(mode):
        # Not opened: a FIFO would wait for a writer for ever, and a device need not end.
        raise _unsupported(path, got="a pipe, socket or device")
    with readable(path):
        size = path.stat().st_size
    start = read_range(path, offset=0, length=min(size, len(MAGIC)), what="start").tobytes()
    if start == MAGIC:
        return open_gguf(path)
    if path.suffix == ".gguf":
        raise _unsupported(path, got="a file that is called .gguf and does not begin with its magic")
    if path.suffix == ".json":
        return open_orbax(path)
    raise _unsupported(path, got="a file of another kind" if size else "an empty file")


def _open_directory(path: Path, names: list[str]) -> Source:
    """The first layout of which there is a file."""
    layouts: list[tuple[str, str, re.Pattern[str], Callable[[Path], Source]]] = [
        (SINGLE_FILE, INDEX_FILE, _SAFETENSORS, lambda path: dense_source(open_safetensors(path))),
        (TORCH_FILE, f"{TORCH_FILE}.index.json", _TORCH_SHARD, open_torch_bin),
        (FLAX_FILE, f"{FLAX_FILE}.index.json", _FLAX_SHARD, open_flax_msgpack),
    ]
    for single, index, shard, opened in layouts:
        files = [single] if single in names else [name for name in names if shard.fullmatch(name)]
        if files or index in names:
            for name in files if index not in names else ():  # an index says itself what is to be read
                refuse_pointer(path / name)
            return opened(path)
    if not MARKS.isdisjoint(names):
        return open_orbax(path)
    raise _directory_without_weights(path, names)


def _nothing(path: Path) -> NotFoundError:
    got = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "nothing at that path"
    return NotFoundError(
        str(path),
        got=got,
        expected="a directory with weights, or a .gguf file",
        fix="check the spelling; download the model first",
    )


def _directory_without_weights(path: Path, names: list[str]) -> UnsupportedError:
    found = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    suffixes = {Path(name).suffix for name in names}
    if ".gguf" in suffixes:
        return _unsupported(path, got=f"a directory with {found}", fix="give the .gguf file itself")
    if suffixes & _TORCH_SUFFIXES or not names:
        return _unsupported(path, got=f"a directory with {found or 'nothing in it'}")
    if "config.json" in names:
        fix = "the weights are missing: download them too (*.safetensors, or one of the others)"
        return _unsupported(path, got=f"a directory with {found}", fix=fix)
    return _unsupported(path, got=f"a directory with {found}")


def _unsupported(path: Path, *, got: str, fix: str | None = None) -> UnsupportedError:
    return UnsupportedError(
        str(path),
        got=got,
        expected=f"config.json and *.safetensors, {TORCH_FILE} or {FLAX_FILE} in a directory, or a GGUF file",
        fix=fix
        or "for a file of weights give its directory; save other formats with transformers' "
        "`save_pretrained` first",
    )
