"""Whether a checkpoint can be written to a place, wherever that is: asked before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from endor_jax.location import Location, ObjectPath
from endor_jax.store.destination import check_destination, check_job, check_resumable, refusals
from endor_jax.store.journal import JOURNAL_VERSION
from endor_jax.store.remote.destination import ObjectDestination
from endor_jax.store.remote.journal import peek_objects


def check_place(place: Location, *, resume: bool) -> None:
    """As `check_destination`, which it is for a directory."""
    if not isinstance(place, ObjectPath):
        check_destination(place, resume=resume)
        return
    with refusals(place, "to read what is there", resume=resume):
        ObjectDestination(place).check(resume=resume)


def check_job_at(place: Location, job: Mapping[str, Any]) -> None:
    """As `check_resumable`, which it is for a directory."""
    if not isinstance(place, ObjectPath):
        check_resumable(place, job)
        return
    with refusals(place, "to read what is there", resume=True):
        destination = ObjectDestination(place)
        lines = peek_objects(destination.objects)
        finished = len(lines) > 1 or (bool(lines) and destination.has_manifest())
    if lines and finished:
        check_job(place, lines[0], {"journal": JOURNAL_VERSION} | dict(job))
