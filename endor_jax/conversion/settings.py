"""What a conversion is asked to do, as one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from endor_jax.arrays import FLOAT_FORMATS
from endor_jax.errors import OptionError
from endor_jax.format.values import parse_codec

PRUNE_METHODS = ("none", "magnitude")


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert.

    prune and sparsity: method and fraction of zeros in every row of the layers' matrices; "none" keeps what
    is there and takes no sparsity. values: "auto", "raw", "packed", "packed:K". dtype: of all float tensors,
    None keeps each as it is. keep_negative_zero: −0.0 is otherwise stored as +0.0, and counted.
    """

    prune: str = "none"
    sparsity: float | None = None
    values: str = "auto"
    dtype: str | None = None
    keep_negative_zero: bool = False

    def __post_init__(self) -> None:
        if self.prune not in PRUNE_METHODS:
            raise OptionError(
                "prune", got=repr(self.prune), expected=" or ".join(PRUNE_METHODS), fix="choose one"
            )
        if (self.prune == "none") != (self.sparsity is None):
            raise OptionError(
                "sparsity",
                got=f"{self.sparsity} with prune={self.prune!r}",
                expected="a sparsity with a pruning method, none without",
                fix="give both or neither",
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError(
                "sparsity", got=str(self.sparsity), expected="0 or more and below 1", fix="0.5 drops half"
            )
        if self.values not in ("auto", "packed"):
            parse_codec(self.values)
        if self.dtype is not None and self.dtype not in FLOAT_FORMATS:
            raise OptionError(
                "dtype", got=repr(self.dtype), expected=", ".join(FLOAT_FORMATS), fix="choose one of these"
            )
