"""What the pruning suite measures: cells, which differ in how a model is pruned, and what they share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from endor_jax.conversion.settings import CalibrationText, ConvertSettings
from endor_jax.errors import OptionError

LENGTH = 512
"""Tokens of a block, of models that have so many positions."""


@dataclass(frozen=True)
class Cell:
    """One way to prune. sparsity: 0 with the method "none". structure: None as in the method's paper; N:M is
    a sparsity by itself, which stands in `sparsity`. values: of the layers' matrices. target: of calibration.

    Raises OptionError as `convert` does.
    """

    method: str
    sparsity: float
    structure: str | None = None
    allocation: str = "uniform"
    values: str = "auto"
    target: str = "layer"

    def __post_init__(self) -> None:
        self._settings()

    def _settings(self) -> ConvertSettings:
        return ConvertSettings(
            prune=self.method,
            sparsity=self._asked_sparsity,
            structure=self.structure,
            allocation=self.allocation,
            target=self.target,
            values=self.values,
        )

    @property
    def calibrated(self) -> bool:
        """Whether `convert` looks at a text for it, and so takes options that say which."""
        return self._settings().calibrated

    @property
    def _asked_sparsity(self) -> float | None:
        """For `convert`, which takes none where something else says it."""
        given = self.method == "none" or ":" in (self.structure or "")
        return None if given else self.sparsity

    @property
    def options(self) -> tuple[str, ...]:
        """Of `endor convert`."""
        options = ["--prune", self.method, "--values", self.values]
        if self._asked_sparsity is not None:
            options += ["--sparsity", f"{self.sparsity:g}"]
        if self.structure is not None:
            options += ["--mask-structure", self.structure]
        if self.allocation != "uniform":
            options += ["--sparsity-allocation", self.allocation]
        if self.target != "layer":
            options += ["--calibration-target", self.target]
        return tuple(options)

    @property
    def series(self) -> str:
        """What it has in common with cells of other sparsity and values, in words."""
        words = [self.method if self.method != "none" else "dense"]
        words[0] += "" if self.target == "layer" else f"+{self.target}"
        words += [self.structure] if self.structure is not None else []
        words += [self.allocation] if self.allocation != "uniform" else []
        return " ".join(words)

    def __str__(self) -> str:
        return f"{self.series}, {self.sparsity:.0%}, {self.values}"


DENSE = Cell("none", 0.0)


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a cell; the method "none" has sparsity 0 only."""

    methods: Sequence[str]
    sparsities: Sequence[float]
    structures: Sequence[str | None] = (None,)
    allocations: Sequence[str] = ("uniform",)
    values: Sequence[str] = ("auto",)
    targets: Sequence[str] = ("layer",)

    def cells(self) -> tuple[Cell, ...]:
        """Those without a method first, then the methods one after another at the first sparsity, and so on.

        Raises OptionError for a combination that `convert` refuses.
        """
        axes = self.sparsities, self.methods, self.structures, self.allocations, self.values, self.targets
        found = [Cell("none", 0.0, values=values) for values in self.values if "none" in self.methods]
        for sparsity, method, structure, *others in itertools.product(*axes):
            if method != "none":
                found.append(Cell(method, _sparsity_of(structure, sparsity), structure, *others))
        return tuple(dict.fromkeys(found))


def _sparsity_of(structure: str | None, sparsity: float) -> float:
    """That of N:M, which keeps N of M, or the one given."""
    if structure is None or ":" not in structure:
        return sparsity
    return ConvertSettings(prune="magnitude", structure=structure).target_sparsity


@dataclass(frozen=True)
class PruningSettings:
    """What all cells of a record share.

    model: a source for `convert`. data: a text, None for Python's help texts; own_text: the model writes it
    itself. Its shuffled blocks 0 to calibration_blocks are for calibration, the next evaluation_blocks are
    scored, and KL and agreement are those of the first divergence_blocks of these. length: tokens of a block,
    None takes 512, or all positions of a model that has fewer. dtype: of all float tensors, dense ones too.
    """

    model: str
    data: str | None = None
    own_text: bool = False
    calibration_blocks: int = 64
    evaluation_blocks: int = 40
    divergence_blocks: int = 8
    length: int | None = None
    seed: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.own_text and self.data is not None:
            raise OptionError(
                "text", got=f"{self.data}, and one of the model's own", expected="one", fix="leave one out"
            )
        if not 1 <= self.divergence_blocks <= self.evaluation_blocks:
            raise OptionError(
                "divergence blocks",
                got=str(self.divergence_blocks),
                expected=f"1 to {self.evaluation_blocks}, the blocks that are scored",
                fix="ask for fewer, or score more blocks",
            )
        CalibrationText(None, self.calibration_blocks, self.length, self.seed)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
