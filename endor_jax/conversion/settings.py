"""What a conversion is asked to do, as one frozen value, checked when it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from endor_jax.arrays import FLOAT_FORMATS
from endor_jax.errors import OptionError
from endor_jax.format.layout import GROUP
from endor_jax.format.values import parse_codec
from endor_jax.prune.structure import Structure, parse_structure

UPDATING = ("sparsegpt", "admm")
"""Methods that change what is kept."""
CALIBRATED = ("wanda", *UPDATING)
"""Methods that look at what a matrix is multiplied with."""
PRUNE_METHODS = ("none", "magnitude", *CALIBRATED)
ALLOCATIONS = ("uniform", "owl")
TARGETS = ("layer", "model")
DEFAULT_STRUCTURES = {"magnitude": "row", "wanda": "row", "sparsegpt": "matrix", "admm": "matrix"}
"""By method, where zeros lie unless asked otherwise: as in its paper."""


@dataclass(frozen=True)
class CalibrationText:
    """What a model is calibrated with: `blocks` blocks of `length` tokens of a text, the first of a seeded
    shuffle.

    path: a text or JSONL file; None takes the help texts of Python, which are always there. length: None
    takes 512, or all positions of a model that has fewer.
    """

    path: str | os.PathLike[str] | None = None
    blocks: int = 64
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("blocks", self.blocks), ("length", self.length)):
            if value is not None and value < 1:
                raise OptionError(f"calibration {name}", got=str(value), expected="1 or more", fix="raise it")
        if self.seed < 0:
            raise OptionError("seed", got=str(self.seed), expected="0 or more", fix="any will do")
        if self.path is not None:
            object.__setattr__(self, "path", os.fspath(self.path))  # settings are kept as JSON


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert.

    prune and sparsity: method and fraction of zeros in the layers' matrices; "none" keeps what is there and
    takes no sparsity. structure: where the zeros lie: in every "row" alike, anywhere in a "matrix", or N kept
    of every M neighbours ("2:4", which takes no sparsity); None as in the method's paper. allocation:
    "uniform", or "owl", which gives layers with more outliers less sparsity. target: what a pruned matrix
    should give, for methods that change what is kept: what the unpruned one gives for the same inputs
    ("layer", as in the papers), or what it gives in the unpruned "model". values: "auto", "raw", "packed",
    "packed:K"; of the layers' matrices also "int8", "int4", which lose something. dtype: of all float
    tensors, None keeps each as it is. keep_negative_zero: −0.0 is otherwise stored as +0.0, and counted.
    shards: every record is cut into a multiple of so many parts, for so many devices or a divisor of it.
    """

    prune: str = "none"
    sparsity: float | None = None
    structure: str | None = None
    allocation: str = "uniform"
    target: str = "layer"
    values: str = "auto"
    dtype: str | None = None
    keep_negative_zero: bool = False
    shards: int = 1
    calibration: CalibrationText = field(default_factory=CalibrationText)

    def __post_init__(self) -> None:
        _check_choice("prune", self.prune, PRUNE_METHODS)
        _check_choice("sparsity allocation", self.allocation, ALLOCATIONS)
        _check_choice("calibration target", self.target, TARGETS)
        if self.target == "model" and self.prune not in UPDATING:
            raise OptionError(
                "calibration target",
                got=f"'model' with prune={self.prune!r}",
                expected=f"a method that changes what is kept: {', '.join(UPDATING)}",
                fix="choose one of these, or leave the target out",
            )
        grouped = self.structure is not None and parse_structure(self.structure).sparsity is not None
        if self.prune == "none" and (self.structure is not None or self.allocation != "uniform"):
            raise OptionError(
                "mask structure" if self.structure is not None else "sparsity allocation",
                got=f"{self.structure if self.structure is not None else self.allocation!r} without pruning",
                expected="a pruning method with it",
                fix=f"choose one of {', '.join(PRUNE_METHODS[1:])}",
            )
        if (self.sparsity is None) != (self.prune == "none" or grouped):
            raise OptionError(
                "sparsity",
                got=f"{self.sparsity} with prune={self.prune!r}"
                + (f" and structure={self.structure!r}" if grouped else ""),
                expected="a sparsity with a pruning method, none without, and none with N:M, which is one",
                fix="leave the sparsity out" if grouped else "give both or neither",
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError(
                "sparsity", got=str(self.sparsity), expected="0 or more and below 1", fix="0.5 drops half"
            )
        if grouped and self.allocation != "uniform":
            raise OptionError(
                "sparsity allocation",
                got=f"{self.allocation!r} with structure={self.structure!r}",
                expected="uniform: N:M is the same in every layer",
                fix="leave one of them out",
            )
        if self.values not in ("auto", "packed"):
            parse_codec(self.values)
        if grouped and self.lossy and self.prune in UPDATING and GROUP % self.mask_structure.of:
            raise OptionError(
                "mask structure",
                got=f"{self.structure!r} with values={self.values!r} and prune={self.prune!r}",
                expected=f"groups that {GROUP} columns, which share a scale, are a multiple of",
                fix="use groups of 2, 4, 8, 16 or 32 columns",
            )
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, tuple(FLOAT_FORMATS))
        check_shards(self.shards)

    @property
    def lossy(self) -> bool:
        """Whether the values of the layers' matrices are quantised, which loses something."""
        return self.values not in ("auto", "packed") and parse_codec(self.values).quantised

    @property
    def calibrated(self) -> bool:
        """Whether the model is run on a text: to prune by what matrices meet, or to share sparsity out."""
        return self.prune in CALIBRATED or self.allocation == "owl"

    @property
    def mask_structure(self) -> Structure:
        """Where the zeros lie, for a pruning method."""
        return parse_structure(self.structure or DEFAULT_STRUCTURES[self.prune])

    @property
    def target_sparsity(self) -> float:
        """The fraction of zeros in the layers' matrices that is asked for."""
        if self.sparsity is None and self.prune != "none":
            return self.mask_structure.sparsity or 0.0
        return self.sparsity or 0.0


def check_shards(shards: int) -> None:
    """Raises OptionError for a number of shards that no record can have."""
    if shards < 1:
        raise OptionError(
            "shards", got=str(shards), expected="1 or more", fix="give a multiple of the number of devices"
        )


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(option, got=repr(value), expected=", ".join(choices), fix="choose one of these")
