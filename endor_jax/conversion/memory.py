"""What a conversion takes of memory, said before it starts.

Resident memory of the whole process: what it has now (Python and the libraries), and at most the record in
work as it will be stored, with either the tensor that is being read, or the pieces of the part that is being
encoded and the part itself. Pages that the system caches do not count.
"""

from __future__ import annotations

from collections.abc import Mapping

from endor_jax.conversion.estimate import stored_info
from endor_jax.memory import give_back, peak_host_bytes, resident_bytes
from endor_jax.sources.gguf import GgufSource
from endor_jax.sources.source import Source
from endor_jax.store.manifest import Manifest

ALLOWANCE_BYTES = 96 * 2**20
"""Blocks in work, and what malloc keeps for later."""
GGUF_COPIES = 2.5
"""Of an array that is not stored as it is read: its blocks, groups of rows expanded, and the whole. `gguf`
holds all three for a moment; blocks are half as large at most."""
_GGUF_FLOAT32 = 0


def peak_bytes(
    source: Source, names: Mapping[str, Mapping[str, str]], expected: Manifest, *, dtype: str | None
) -> int:
    """A bound on the peak resident memory of this process, if it converts `source` as planned.

    names: of the source, by record and tensor. expected: the manifest to expect. dtype: of the settings.
    """
    give_back()  # what the survey has freed
    most = 0
    for record in expected.records:
        held = 0
        for name in names[record.name].values():
            read, stored = source.tensors[name], stored_info(source, name, dtype)
            cast = stored.nbytes if stored.dtype != read.dtype else 0
            most = max(most, held + max(_reading_bytes(source, name), read.nbytes + cast))
            held += stored.nbytes
        most = max(most, held + 2 * max(part.length_bytes for part in record.parts))
    return max(peak_host_bytes(), resident_bytes() + most + ALLOWANCE_BYTES)


def _reading_bytes(source: Source, name: str) -> int:
    """What reading a tensor takes, the array that is read included."""
    array = source.tensors[name].nbytes
    if not isinstance(source, GgufSource):
        return array
    as_it_is = source.header.tensors[source.stored_names[name]].type_id == _GGUF_FLOAT32
    reordered = ".q_proj." in name or ".k_proj." in name
    return array if as_it_is and not reordered else int(GGUF_COPIES * array)
