"""SparseTensor: a compressed array as a pytree, either owning its words or viewing those of a record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from endor_jax.format.layout import TensorLayout

if TYPE_CHECKING:
    Words = jax.Array | np.ndarray | jax.ShapeDtypeStruct
else:  # what holds words when we make it; JAX rebuilds pytrees with shardings, axes and placeholders too
    Words = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SparseTensor:
    """A compressed array of shape `shape` and dtype `dtype`.

    parts: one uint32 array (words,) per part; each holds `layout.rows` rows of the matrix, in order (several
        only when a record was cut). Under `vmap` and `shard_map` they carry the usual extra axes.
    layout: static; where in each part the sections of this tensor are.

    Invariants: sections, stream and escapes of every part lie inside it; the last part may end in empty
    padding rows; `expand` gives exactly the array that was encoded. A view made by `record[name]` shares the
    record's words: pass records, not views, across jit, device_put and checkpoints, or each view transfers
    the whole record.
    """

    parts: tuple[Words, ...]
    layout: TensorLayout = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that `expand` gives."""
        return self.layout.shape

    @property
    def dtype(self) -> str:
        """Name of the dtype of the array that `expand` gives."""
        return self.layout.dtype

    def __repr__(self) -> str:
        codec = getattr(self.layout, "codec", None)
        how = codec.name if codec else "dense"
        held = sum(4 * math.prod(words.shape) for words in self.parts)
        where = f"{held:,} bytes in {len(self.parts)} part(s)"
        return f"SparseTensor({self.dtype}{list(self.shape)}, {how}, {where})"
