"""Where zeros may be: as many in every row, anywhere in the matrix, or N kept of every M columns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from endor_jax.errors import InvalidInputError, OptionError

LARGEST_GROUP = 32

Columns = TypeVar("Columns", bound=Any)


@dataclass(frozen=True)
class Structure:
    """Over which elements of a (rows, columns) matrix zeros are counted.

    scope: "row", "matrix", or "group": at most `kept` of every `of` neighbouring columns of a row, with
    1 <= kept < of <= 32. A last group of fewer columns drops the same share of them, rounded up.
    kept, of: 0 unless the scope is "group".
    """

    scope: Literal["row", "matrix", "group"]
    kept: int = 0
    of: int = 0

    @property
    def name(self) -> str:
        """What `parse_structure` reads: "row", "matrix", "2:4"."""
        return f"{self.kept}:{self.of}" if self.scope == "group" else self.scope

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that groups fix; None where it is free."""
        return 1 - self.kept / self.of if self.scope == "group" else None


ROW = Structure("row")
MATRIX = Structure("matrix")


def parse_structure(text: str) -> Structure:
    """The structure of a name: "row", "matrix" or N:M. Raises OptionError for anything else."""
    if text in ("row", "matrix"):
        return ROW if text == "row" else MATRIX
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    kept, of = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= kept < of <= LARGEST_GROUP:
        raise OptionError(
            "mask structure",
            got=repr(text),
            expected=f"'row', 'matrix' or N:M with 1 <= N < M <= {LARGEST_GROUP}",
            fix="2:4 keeps at most 2 of every 4 neighbouring columns",
        )
    return Structure("group", kept, of)


def dropped(sparsity: float, count: int) -> int:
    """How many of `count` elements become zero: the sparsity stored is at least the one asked for.

    Rounded to a millionth of an element before it is rounded up: 0.7 · 10 is 7, not 8.
    """
    return math.ceil(round(sparsity * count, 6))


def dropped_of_group(structure: Structure, columns: Columns) -> Columns:
    """How many a group drops that has `columns` <= M columns, a number or an array of integers."""
    return -(-columns * (structure.of - structure.kept) // structure.of)


def drop_count(structure: Structure, sparsity: float | None, shape: tuple[int, int]) -> int:
    """How many elements become zero, of every row or, for the scope "matrix", of the matrix.

    `sparsity` is None or what the groups fix if the structure has groups. Raises InvalidInputError if not,
    and unless 0 <= sparsity < 1.
    """
    rows, columns = shape
    if structure.sparsity is not None:
        if sparsity is not None and not math.isclose(sparsity, structure.sparsity):
            raise InvalidInputError(
                "pruning",
                got=f"sparsity {sparsity} with the structure {structure.name}",
                expected=f"none, or {structure.sparsity}",
                fix="the structure alone says how many of a group are kept",
            )
        whole, rest = divmod(columns, structure.of)
        return whole * (structure.of - structure.kept) + dropped_of_group(structure, rest)
    if sparsity is None or not 0 <= sparsity < 1:
        raise InvalidInputError(
            "pruning", got=f"sparsity {sparsity}", expected="0 or more and below 1", fix="0.5 drops half"
        )
    return dropped(sparsity, columns if structure.scope == "row" else rows * columns)
