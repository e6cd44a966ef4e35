"""What is said of a checkpoint without opening its parts: its manifest, and how many bytes its files have."""

from __future__ import annotations

import os

from endor_jax.location import ObjectPath, locate
from endor_jax.store.destination import taken_bytes
from endor_jax.store.manifest import Manifest, manifest_bytes, read_manifest
from endor_jax.store.part import file_bytes, metadata_of
from endor_jax.store.remote.manifest import fetch_manifest
from endor_jax.store.remote.objects import Objects


def manifest_at(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a checkpoint. Raises as opening it does, but for its parts."""
    place = locate(path)
    return fetch_manifest(Objects(place)) if isinstance(place, ObjectPath) else read_manifest(place)


def stored_bytes_at(path: str | os.PathLike[str]) -> int:
    """Bytes of all files of a checkpoint.

    Of an object store, which tells no sizes, those that its manifest promises; the files that are kept as
    they are are read. Raises StorageError, and for an object store as `manifest_at`.
    """
    place = locate(path)
    if not isinstance(place, ObjectPath):
        return taken_bytes(place)
    objects = Objects(place)
    manifest = fetch_manifest(objects)
    parts = sum(file_bytes(p.length_bytes) + len(metadata_of(p.length_bytes)) for p in manifest.parts)
    kept = sum(len(objects.read(name)) for name in manifest.kept_files)
    return len(manifest_bytes(manifest)) + parts + kept
