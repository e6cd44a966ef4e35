"""`encode`, the public operation: arrays or chosen leaves of a tree to SparseTensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, native
from endor_jax.errors import UnsupportedError
from endor_jax.format.choose import choose_codec
from endor_jax.format.encode import encode_array

Select = Callable[[str, Any], bool]
"""Says of a leaf, by its dotted name and value, whether to encode it."""


def encode(params: Any, *, values: str = "auto", select: Select | None = None) -> Any:
    """Compresses an array, or every selected leaf of a parameter tree: without loss unless asked for it.

    params: one array of bfloat16, float16 or float32 and rank 2 or more, or any pytree of arrays; other
    leaves of a tree stay as they are. values: "auto" (fewest bytes), "raw", "packed", "packed:K"; "int8" and
    "int4" quantise, which loses something. select: which leaves of a tree; by default every one that can be
    encoded. Returns SparseTensor in place of each. Raises UnsupportedError for a selected array that the
    format cannot hold, InvalidInputError for one with NaN or infinities that is to be quantised.
    """

    def leaf(path: tuple[Any, ...], array: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        single = not path
        wanted = select(name, array) if select else single or encodable(array)
        if not wanted:
            return array
        host = native(np.asarray(array))
        if not encodable(host):
            raise UnsupportedError(
                f"array {name!r}" if name else "array",
                got=f"{host.dtype.name}{list(host.shape)}",
                expected=f"{', '.join(FLOAT_FORMATS)}, rank 2 or more, not empty",
                fix="leave it out with select=, or convert it",
            )
        return encode_array(host, choose_codec([host], values).name)

    return jax.tree_util.tree_map_with_path(leaf, params)


def encodable(array: Any) -> bool:
    """Whether an array can be stored as fields: a float format, rank 2 or more, not empty."""
    name = getattr(getattr(array, "dtype", None), "name", "")
    return name in FLOAT_FORMATS and array.ndim >= 2 and array.size > 0
