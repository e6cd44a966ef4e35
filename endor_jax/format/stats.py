"""What was counted while a tensor was encoded; the numbers behind `endor info` and every report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorStats:
    """Counts of one tensor.

    nonzero counts elements whose bits are not those of +0.0; stored_bytes is the tensor's share of its parts
    (sections, stream and escapes, without the part's padding).
    """

    elements: int
    nonzero: int
    escapes: int
    stored_bytes: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - self.nonzero / self.elements if self.elements else 0.0

    def __add__(self, other: TensorStats) -> TensorStats:
        return TensorStats(
            self.elements + other.elements,
            self.nonzero + other.nonzero,
            self.escapes + other.escapes,
            self.stored_bytes + other.stored_bytes,
        )
