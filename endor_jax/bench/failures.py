"""Our errors from one process to another: with what they say, which pickling them as they are would lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from endor_jax.errors import EndorError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """One of our errors, in a form that can be pickled."""

    kind: type[EndorError]
    where: str
    got: str
    expected: str
    fix: str


def outcome(job: Callable[..., Result], *arguments: Any) -> Result | Failure:
    """What a job returns, or with which of our errors it failed. Raises any other."""
    try:
        return job(*arguments)
    except EndorError as error:
        return Failure(type(error), error.where, error.got, error.expected, error.fix)


def result(outcome: Result | Failure) -> Result:
    """What a job returned. Raises what it raised."""
    if isinstance(outcome, Failure):
        raise outcome.kind(outcome.where, got=outcome.got, expected=outcome.expected, fix=outcome.fix)
    return outcome
