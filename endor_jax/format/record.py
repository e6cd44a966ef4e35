"""Record: the parts of one layer with their layout; the pytree that crosses jit, device_put and donation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import jax

from endor_jax.format.layout import RecordLayout
from endor_jax.format.tensor import SparseTensor, Words


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Record:
    """All tensors of one layer, compressed.

    words: one uint32 array per part. On the device it may be longer than the part (a size class); what lies
        behind the part is undefined and never read.
    layout: static, equal for all records of one signature.
    """

    words: tuple[Words, ...]
    layout: RecordLayout = field(metadata={"static": True})

    def __getitem__(self, name: str) -> SparseTensor:
        """A view of one tensor, to be made where it is used. Raises KeyError naming what there is."""
        return SparseTensor(self.words, self.layout[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)
