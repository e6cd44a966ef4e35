"""Bytes that are not those the manifest promises: told apart into damaged and exchanged files."""

from __future__ import annotations

from endor_jax.errors import CorruptCheckpointError
from endor_jax.location import Location
from endor_jax.store.digest import digest_bytes
from endor_jax.store.manifest import Manifest, Part
from endor_jax.store.part import corrupt_part

EXCHANGED = "files were exchanged; put each back in its place, or copy or convert the checkpoint again"
DAMAGED = "the file is damaged; copy or convert the checkpoint again"


def check_digests(root: Location, manifest: Manifest, part: Part, digests: tuple[str, ...]) -> None:
    """Raises CorruptCheckpointError unless the digests of some bytes, chunk by chunk, are those of `part`."""
    if digests == part.digests:
        return
    for other in manifest.parts:
        if other.digests == digests:
            raise corrupt_part(root / part.path, f"the bytes of {other.path}", "its own", EXCHANGED)
    differing = [i for i in range(len(digests)) if digests[i] != part.digests[i]]
    first = differing[0]
    more = f" (and in {len(differing) - 1} more places)" if len(differing) > 1 else ""
    raise corrupt_part(
        root / part.path,
        f"digest {digests[first]} for bytes {first * part.chunk_bytes:,} and following{more}",
        part.digests[first],
        DAMAGED,
    )


def check_file(path: Location, manifest: Manifest, name: str, data: bytes) -> None:
    """Raises CorruptCheckpointError unless `data` are the bytes of what the manifest calls `name`.

    Raises KeyError for a name that it does not have.
    """
    got, expected = digest_bytes(data), manifest.files[name]
    if got == expected:
        return
    other = next((other for other, digest in manifest.files.items() if digest == got), None)
    if other is None:
        raise CorruptCheckpointError(f"file {path}", got=f"digest {got}", expected=expected, fix=DAMAGED)
    raise CorruptCheckpointError(
        f"file {path}", got=f"the bytes of {other}", expected="its own", fix=EXCHANGED
    )
