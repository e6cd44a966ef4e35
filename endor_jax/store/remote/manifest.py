"""The manifest of a checkpoint in an object store."""

from __future__ import annotations

from endor_jax.store.manifest import BEGUN, MANIFEST_FILE, Manifest, no_manifest, parse_manifest
from endor_jax.store.remote.objects import Objects


def fetch_manifest(objects: Objects) -> Manifest:
    """As `read_manifest` of a directory; what raises NotFoundError there does so here."""
    held = objects.get(MANIFEST_FILE)
    if held is not None:
        return parse_manifest(held.data, str(objects.root / MANIFEST_FILE))
    names = objects.names()  # a bucket that is not there is said by this, not by reading
    begun = next((n for n in BEGUN if any(name == n or name.startswith(f"{n}/") for name in names)), None)
    raise no_manifest(
        objects.root, begun=begun, got=f"no {MANIFEST_FILE}" if names else "no object that begins so"
    )
