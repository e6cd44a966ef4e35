"""What a conversion takes of memory, said before it starts.

Resident memory of the whole process: what it has now (Python and the libraries), and at most the record in
work as it will be stored, with either the tensor that is being read, or the pieces of the part that is being
encoded and the part itself. A calibrated method takes a layer three times, the sums over its inputs, and what
either a step of the model or the largest matrix in work needs. Pages that the system caches do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from endor_jax.conversion.calibrate import step_blocks
from endor_jax.conversion.estimate import stored_info
from endor_jax.conversion.settings import UPDATING, ConvertSettings
from endor_jax.memory import give_back, peak_host_bytes, resident_bytes
from endor_jax.models import Decoder
from endor_jax.sources.gguf import GgufSource
from endor_jax.sources.source import Source
from endor_jax.store.manifest import Manifest

ALLOWANCE_BYTES = 96 * 2**20
"""Blocks in work, and what malloc keeps for later."""
COMPILING_BYTES = 192 * 2**20
"""What XLA's compiler takes, and keeps."""
MATRIX_COPIES, PRODUCT_COPIES, SCORE_COPIES = 6, 4, 3
"""Arrays of a matrix's size, of its products' size and of the attention scores' size that are there at
once."""
WHOLE_MATRIX_BYTES = 24
"""For each element of a matrix that is pruned by magnitude as a whole, not a block of rows at a time."""
GGUF_COPIES = 2.5
"""Of an array that is not stored as it is read: its blocks, groups of rows expanded, and the whole. `gguf`
holds all three for a moment; blocks are half as large at most."""
_GGUF_FLOAT32 = 0


def peak_bytes(
    source: Source,
    names: Mapping[str, Mapping[str, str]],
    expected: Manifest,
    *,
    settings: ConvertSettings,
) -> int:
    """A bound on the peak resident memory of this process, if it converts `source` as planned.

    names: of the source, by record and tensor. expected: the manifest to expect.
    """
    give_back()  # what the survey has freed
    most, whole = 0, settings.prune == "magnitude" and settings.mask_structure.scope == "matrix"
    for record in expected.records:
        held = 0
        for name in names[record.name].values():
            read, stored = source.tensors[name], stored_info(source, name, settings.dtype)
            work = stored.nbytes if stored.dtype != read.dtype else 0
            if whole and record.name.startswith("layers."):
                work += WHOLE_MATRIX_BYTES * prod(stored.shape)
            most = max(most, held + max(_reading_bytes(source, name), read.nbytes + work))
            held += stored.nbytes
        most = max(most, held + 2 * max(part.length_bytes for part in record.parts))
    return max(peak_host_bytes(), resident_bytes() + most + ALLOWANCE_BYTES)


def calibration_bytes(
    decoder: Decoder,
    names: Mapping[str, Mapping[str, str]],
    source: Source,
    *,
    settings: ConvertSettings,
    blocks: tuple[int, int],
) -> int:
    """A bound on the peak resident memory of this process while it calibrates: blocks of (number, length).

    Measured for models of 0.1 to 1.1 billion parameters (`endor bench memory`): the matrices of a layer as
    they are read, on the device and as they will be stored; the sums; and the larger of a step's hidden
    states, attention scores and widened matrix, and of the copies of one matrix and its products.
    """
    layer = max(
        sum(stored_info(source, name, settings.dtype).nbytes for name in tensors.values())
        for record, tensors in names.items()
        if record.startswith("layers.")
    )
    shapes = {name: decoder.block_shapes[name] for name in decoder.block_inputs}
    inputs = {first: shapes[first][1] for first in decoder.block_inputs.values()}
    products = settings.prune in UPDATING
    pairs = 2 if settings.target == "model" else 1
    sums = pairs * sum(4 * columns * (columns if products else 1) for columns in inputs.values())
    config, tokens = decoder.config, step_blocks(*blocks) * blocks[1]
    widest = 4 * max(rows * columns for rows, columns in shapes.values())
    scores = 4 * tokens * config.heads * blocks[1]
    states = pairs * 4 * tokens * (4 * config.hidden_size + 3 * config.intermediate_size)
    matrix = max(
        4 * (MATRIX_COPIES * rows * columns + (PRODUCT_COPIES * columns**2 if products else 0))
        for rows, columns in shapes.values()
    )
    work = max(widest + SCORE_COPIES * scores + states, matrix)
    return resident_bytes() + (2 + pairs) * layer + sums + work + ALLOWANCE_BYTES + COMPILING_BYTES


def _reading_bytes(source: Source, name: str) -> int:
    """What reading a tensor takes, the array that is read included."""
    array = source.tensors[name].nbytes
    if not isinstance(source, GgufSource):
        return array
    as_it_is = source.header.tensors[source.stored_names[name]].type_id == _GGUF_FLOAT32
    reordered = ".q_proj." in name or ".k_proj." in name
    return array if as_it_is and not reordered else int(GGUF_COPIES * array)
