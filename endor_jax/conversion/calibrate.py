"""Pruning layer by layer: a text goes through the model, and each layer is pruned by what reaches it.

The hidden states of all blocks stand before one layer. Its unpruned weights meet them while sums are made,
then they are pruned, and the layer as it will be stored takes the hidden states on to the next one: so every
layer is fitted to what the pruned layers before it give (SparseGPT, sec. 3.1; Wanda, sec. 3). With the target
"model" the text also goes through the unpruned layers, and a pruned matrix is fitted to what the unpruned one
gives *there* (`prune/retarget.py`). Memory holds one layer and the blocks of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jaxtyping import Int

from endor_jax.conversion.activations import Activations
from endor_jax.conversion.forward import Statistics, layer_step, statistics_step, stem_step
from endor_jax.conversion.methods import Stored, no_sums, pruned_matrices
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import about
from endor_jax.format.layout import FieldLayout, RecordLayout
from endor_jax.format.quantise import Quantised, dequantise
from endor_jax.format.values import Codec
from endor_jax.models import Decoder, LlamaConfig, OptConfig

STEP_TOKENS = 2048
"""Tokens that a step takes: enough that products, not weights, take the time."""
_MEASURING, _PRUNING = 0.4, 0.25
"""Shares of a layer's time, about: for its progress."""

Note = Callable[[str, str, float], None]
"""(record, what is being done with it, share of all that is done with it)"""


class Calibration:
    """A text on its way through a model, held before the record that is next. `close` is idempotent.

    blocks: token ids (blocks, length). directory: where the hidden states are kept while it is open.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: Int[np.ndarray, "blocks length"],
        *,
        directory: Path,
        settings: ConvertSettings,
        note: Note,
    ):
        self._decoder = decoder
        self._blocks = blocks
        self._settings = settings
        self._note = note
        self._directory = directory
        self._hidden = self._room(decoder.config.embedding_size)
        self._unpruned = self._room(decoder.config.embedding_size) if settings.target == "model" else None

    def _room(self, width: int) -> Activations:
        """For so many numbers per token."""
        return Activations(self._directory, (*self._blocks.shape, width))

    def prune(
        self, record: str, layout: RecordLayout, arrays: Mapping[str, np.ndarray], *, sparsity: float
    ) -> dict[str, Stored]:
        """The tensors of a layer as they will be stored: its matrices pruned, the others as they are."""
        sums = self._statistics(record, arrays)
        inputs = self._decoder.block_inputs
        result: dict[str, Stored] = {name: array for name, array in arrays.items() if name not in inputs}
        for first in list(sums):
            names = [name for name in inputs if inputs[name] == first]
            done = sum(name in result for name in inputs) / len(inputs)
            self._note(record, "pruning", _MEASURING + done * _PRUNING)
            with about(f"{record} ({', '.join(names)})"):
                result |= pruned_matrices(
                    {name: arrays[name] for name in names},
                    sums.pop(first),
                    settings=self._settings,
                    sparsity=sparsity,
                    codecs={name: _codec(layout, name) for name in names},
                )
        return result

    def _statistics(self, record: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
        """Sums over what the unpruned matrices of a layer meet, by the first matrix of each input."""
        params = jax.device_put(dict(arrays))
        empty = no_sums(self._settings)
        sums = {name: empty(arrays[name].shape[1]) for name in set(self._decoder.block_inputs.values())}
        for first, count, share in self._steps():
            self._note(record, "measuring", share * _MEASURING)
            unpruned = None if self._unpruned is None else self._unpruned.read(first, count)
            sums = statistics_step(self._decoder, params, self._hidden.read(first, count), sums, unpruned)
            # Or the hidden states of many steps would wait in memory for the first to be done.
            jax.block_until_ready(sums)
        return sums

    def advance(self, record: str, stored: Mapping[str, Stored], unpruned: Mapping[str, np.ndarray]) -> None:
        """Takes the hidden states through a record: as it is stored, and unpruned where that is asked for."""
        dense = {name: dequantise(a) if isinstance(a, Quantised) else a for name, a in stored.items()}
        self._hidden = self._run(record, dense, self._hidden)
        if self._unpruned is not None:
            self._unpruned = self._run(record, unpruned, self._unpruned)

    def _run(self, record: str, arrays: Mapping[str, np.ndarray], hidden: Activations) -> Activations:
        """The states behind a record; they take the place of those before it, unless these are narrower."""
        if record == "embedding":
            for first, count, _ in self._steps():
                hidden.write(first, arrays["weight"][self._blocks[first : first + count]])
            return hidden
        step = layer_step if record.startswith("layers.") else stem_step
        params = jax.device_put(dict(arrays))
        # Progress never goes back: what is run second stands still at the end of what is run first.
        begin, end = (_MEASURING + _PRUNING, 1.0) if hidden is self._hidden else (1.0, 1.0)
        width = self._decoder.config.hidden_size
        behind = hidden if hidden.shape[2] == width else self._room(width)
        try:
            for first, count, share in self._steps():
                self._note(record, "running", begin + share * (end - begin))
                x = step(self._decoder, params, hidden.read(first, count))
                behind.write(first, np.asarray(x))
        except BaseException:
            if behind is not hidden:
                behind.close()
            raise
        if behind is not hidden:
            hidden.close()
        return behind

    def _steps(self) -> Iterator[tuple[int, int, float]]:
        """First block and number of blocks of every step, and what share of them is done."""
        blocks, count = self._blocks.shape[0], step_blocks(*self._blocks.shape)
        for first in range(0, blocks, count):
            yield first, count, first / blocks

    def close(self) -> None:
        """Gives the room of the hidden states back."""
        self._hidden.close()
        if self._unpruned is not None:
            self._unpruned.close()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _codec(layout: RecordLayout, name: str) -> Codec | None:
    tensor = layout[name]
    return tensor.codec if isinstance(tensor, FieldLayout) else None


def step_blocks(blocks: int, length: int) -> int:
    """How many blocks a step takes: a divisor of all, so that every step has the same shape."""
    most = max(1, STEP_TOKENS // length)
    return max(count for count in range(1, min(most, blocks) + 1) if blocks % count == 0)


def states_bytes(config: LlamaConfig | OptConfig, tokens: int, *, settings: ConvertSettings) -> int:
    """What the files of hidden states take at most, for a text of so many tokens."""
    width, before = config.hidden_size, config.embedding_size
    texts = 2 if settings.target == "model" else 1
    # One after the other comes to its width behind the stem.
    return (
        4 * tokens * (texts * width if before == width else (texts - 1) * max(width, before) + width + before)
    )
