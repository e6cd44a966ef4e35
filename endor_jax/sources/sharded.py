"""Checkpoints of one file, or of several with an index that says which tensor is in which.

An index is JSON: `weight_map` maps the name of a tensor to that of a file in the same directory. It is
believed about what belongs to the checkpoint, and every shard must hold exactly what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import is_regular_file
from endor_jax.sources.json_object import read_json_object
from endor_jax.sources.lfs_pointer import refuse_pointer

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._ +=-]{1,200}")
_SHOWN = 8  # names in an error message

Tensor = TypeVar("Tensor")


def read_sharded(
    directory: Path, file: str, parse: Callable[[Path], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """By name, what `parse` makes of the tensors in `file`, or else in the shards of `file`.index.json.

    Raises NotFoundError that names all missing shards, InvalidInputError if index and shards contradict each
    other, and what `parse` raises.
    """
    if is_regular_file(directory / file):
        return merged(directory, [file], parse)[0]
    index = directory / f"{file}.index.json"
    weight_map = _weight_map(index, suffix=Path(file).suffix)
    shards = sorted(set(weight_map.values()))
    _check_all_there(directory, shards, index)
    found, homes = merged(directory, shards, parse)
    _check_index(index, weight_map, homes)
    return found


def merged(
    directory: Path, files: Iterable[str], parse: Callable[[Path], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By name, what `parse` makes of the tensors in several files, and in which file each is.

    Raises InvalidInputError for a name in two of them, and for a Git LFS pointer in place of a file.
    """
    found: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for file in files:
        refuse_pointer(directory / file)
        for name, tensor in parse(directory / file).items():
            if name in found:
                raise InvalidInputError(
                    f"tensor {brief(name)}",
                    got=f"two copies, in {directory / homes[name]} and {directory / file}",
                    expected="one",
                    fix="remove the file that does not belong to the checkpoint",
                )
            found[name], homes[name] = tensor, file
    return found, homes


def _weight_map(index: Path, *, suffix: str) -> dict[str, str]:
    """Tensor name -> file name, from an index file."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _wrong_index(index, got="no usable `weight_map`", expected="file names by tensor name")
    for name, shard in weight_map.items():
        # The index came from outside: it must not make us open files elsewhere.
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard) or not shard.endswith(suffix):
            raise _wrong_index(
                index,
                got=f"shard {brief(shard)} for tensor {brief(name)}",
                expected=f"the name of a {suffix} file in the same directory",
            )
    return weight_map


def _wrong_index(index: Path, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(str(index), got=got, expected=expected, fix="fetch the index again")


def _check_all_there(directory: Path, shards: list[str], index: Path) -> None:
    missing = [shard for shard in shards if not is_regular_file(directory / shard)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise NotFoundError(
            str(directory),
            got=f"no {', '.join(missing[:_SHOWN])}{more}",
            expected=f"all {len(shards)} shards that {index.name} names",
            fix="the download is not complete: fetch the missing files",
        )


def _check_index(index: Path, weight_map: Mapping[str, str], homes: Mapping[str, str]) -> None:
    """Index and shards must list the same tensors in the same files."""
    for name, shard in weight_map.items():
        if homes.get(name) != shard:
            raise InvalidInputError(
                f"tensor {brief(name)} of {index}",
                got=f"it in {homes.get(name, 'no shard')}",
                expected=f"it in {shard}, as the index says",
                fix="fetch index and shards from the same place",
            )
    for name, shard in homes.items():
        if name not in weight_map:
            raise InvalidInputError(
                f"tensor {brief(name)} of {index.with_name(shard)}",
                got=f"no entry for it in {index.name}",
                expected="an index that lists every tensor of its shards",
                fix="fetch index and shards from the same place",
            )
