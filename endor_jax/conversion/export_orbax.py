"""`export --to orbax`: a plain parameter checkpoint, a tree of dense arrays that Orbax and Flax read.

OUT/params is what Orbax writes: {"layers": {"0": {"attention": {"query": {"weight": ...}}}}}, each array in
zarr files of its own. Beside it are config and tokenizer files, and the key map with which it is imported.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from endor_jax.conversion.export_model import ExportModel
from endor_jax.errors import DestinationExistsError
from endor_jax.sources.orbax_api import orbax_v1, writing_orbax
from endor_jax.sources.orbax_key_map import KEY_MAP_FILE, key_map_json
from endor_jax.sources.partial_files import partial_files, write_all

_PARAMS = "params"
_WRITTEN = re.compile(rf"{_PARAMS}(\.partial_save)?(\.orbax-checkpoint-tmp(-\d+)?)?")


def write_orbax(model: ExportModel, directory: Path) -> None:
    """Writes the checkpoint, one record in memory at a time, and puts everything in place when it is whole.

    Raises what reading the checkpoint raises, DestinationExistsError, DestinationBusyError, StorageError.
    """
    files = model.files() | {KEY_MAP_FILE: key_map_json(_PARAMS, _keys(model))}
    for path in (directory, directory / _PARAMS, *(directory / name for name in files)):
        if os.path.lexists(path) and not (path == directory and directory.is_dir()):
            raise DestinationExistsError(
                str(path),
                got="something that is already there",
                expected="a directory without a checkpoint in it",
                fix="choose another directory or remove it first",
            )
    sizes = {directory / name: len(data) for name, data in files.items()}
    with ExitStack() as until_in_place:
        with partial_files(directory, sizes) as opened:
            # From here on no other process writes here: what a killed one has left can go.
            _remove(directory)
            with ExitStack() as until_written:
                until_written.callback(_remove, directory)
                _write_arrays(model, directory / _PARAMS)
                for name, data in files.items():
                    write_all(opened[directory / name], memoryview(data), directory=directory)
                until_in_place.enter_context(until_written.pop_all())
        until_in_place.pop_all()


def _write_arrays(model: ExportModel, path: Path) -> None:
    """All tensors, saved record by record."""
    ocp = orbax_v1()
    context = ocp.Context()
    # Files that are named after their arrays: the same model gives the same files.
    context.array.saving.use_ocdbt = False
    # It makes directories in the background, and waits minutes for one that cannot be made.
    context.asynchronous.create_directories_asynchronously = False
    pending: dict[str, Any] = {}
    record = ""
    target = path.absolute()
    with context:
        for name, array in model.tensors():
            place = model.places[name]
            if pending and place.record != record:
                with writing_orbax(path):
                    ocp.partial.save(target, pending)
                pending = {}
            record = place.record
            _put(pending, f"{record}.{place.tensor}", array)
        with writing_orbax(path):
            ocp.partial.save(target, pending)
            ocp.partial.finalize(target)


def _put(tree: dict[str, Any], key: str, array: Any) -> None:
    *branches, leaf = key.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[leaf] = array


def _keys(model: ExportModel) -> dict[str, str]:
    """Key by Hugging Face name, a row for all layers where both have the layer's number."""
    rows: dict[str, str] = {}
    for name, place in model.places.items():
        number = place.record.removeprefix("layers.")
        key = f"{place.record}.{place.tensor}"
        if number != place.record and f"layers.{number}." in name:
            name = name.replace(f"layers.{number}.", "layers.{i}.", 1)
            key = f"layers.{{i}}.{place.tensor}"
        rows[name] = key
    return rows


def _remove(directory: Path) -> None:
    """The arrays, and what Orbax writes until they are whole; nothing else, whatever it is called."""
    for path in directory.glob(f"{_PARAMS}*"):
        if _WRITTEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
