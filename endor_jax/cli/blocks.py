"""Which text a verb scores, and which blocks of it: the options, and the token ids they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from endor_jax.cli.console import Output
    from endor_jax.text import Tokenizer

Data = Annotated[
    str | None,
    typer.Option(help="A UTF-8 text file, or .jsonl with a text a line. Default: Python's own help texts."),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of a block. Default: 512, if the model has so many positions."),
]
DEFAULT_TEXT = "pydoc_data.topics"
"""The name of the text that is always there, in machine output."""


@dataclass(frozen=True)
class Choice:
    """Blocks of a text: those from `first` to before `last` of its shuffled blocks, or all in order.

    data: a file, None for the default text. first, last: None for the beginning and the end; both without a
    seed, which is for shuffling.
    """

    data: str | None
    sequence_length: int
    first: int | None = None
    last: int | None = None
    seed: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What machine output says of it."""
        return {
            "data": DEFAULT_TEXT if self.data is None else self.data,
            "sequence_length": self.sequence_length,
            "blocks": None if self.seed is None else [self.first or 0, self.last],
            "seed": self.seed,
        }

    def __str__(self) -> str:
        which = "all blocks"
        if self.seed is not None:
            first, last = self.first or 0, "" if self.last is None else self.last
            which = f"blocks {first}:{last} of seed {self.seed}"
        return f"{which}, {self.sequence_length} tokens each, of {self.values['data']}"


def choice_of(data: str | None, sequence_length: int, *, blocks: str | None, seed: int | None) -> Choice:
    """What the options ask for. blocks: "FIRST:LAST", None for all in order. seed: 0 where nobody says.

    Raises OptionError for blocks that are no range, and for a seed where nothing is shuffled.
    """
    from endor_jax.errors import OptionError

    if blocks is None:
        if seed is not None:
            raise OptionError(
                "--seed",
                got=f"{seed}, but no --blocks",
                expected="both",
                fix="without --blocks no block moves",
            )
        return Choice(data, sequence_length)
    found = re.fullmatch(r"(\d*):(\d*)", blocks, re.ASCII)
    first, last = (int(each) if each else None for each in found.groups()) if found else (None, None)
    if found is None or (last is not None and last <= (first or 0)):
        raise OptionError(
            "--blocks",
            got=blocks,
            expected="FIRST:LAST with FIRST before LAST, 64:104 for example",
            fix="blocks are counted from 0, and LAST is not among them",
        )
    return Choice(data, sequence_length, first, last, 0 if seed is None else seed)


def token_blocks(choice: Choice, tokenizer: Tokenizer) -> np.ndarray:
    """The chosen blocks as token ids: int32 (blocks, sequence_length).

    Raises NotFoundError and InvalidInputError for a text that cannot be read or has too few blocks.
    """
    from endor_jax.evaluate.perplexity import ordered_blocks
    from endor_jax.text.blocks import shuffled_blocks
    from endor_jax.text.corpus import read_corpus

    ids = tokenizer.encode(read_corpus(choice.data))
    if choice.seed is None:
        return ordered_blocks(ids, choice.sequence_length)
    first = choice.first or 0
    count = None if choice.last is None else choice.last - first
    return shuffled_blocks(ids, choice.sequence_length, seed=choice.seed, first=first, count=count)


def note_calibration(checkpoint: str, choice: Choice, output: Output) -> None:
    """Says on stderr if the chosen blocks may be among those that a checkpoint was calibrated with.

    Raises what reading its manifest raises.
    """
    from endor_jax.store.overview import manifest_at

    calibration = manifest_at(checkpoint).made.get("calibration")
    if (options := unseen_options(calibration, choice)) is not None:
        output.notes.print(
            f"{checkpoint}: some of this text was calibrated with: {options} leaves it out", style="dim"
        )


def unseen_options(calibration: object, choice: Choice) -> str | None:
    """The options that leave out what a checkpoint was calibrated with; None if the choice does already.

    calibration: as `made` in the manifest describes it, None without one; what another program has put there
    says nothing. Files are told apart by their names alone: a checkpoint moves from machine to machine.
    Blocks of another length or shuffle may overlap anywhere.
    """
    match calibration:
        case {"text": str(text), "blocks": int(blocks), "length": int(length), "seed": int(seed)}:
            pass
        case _:
            return None
    if Path(text).name != Path(choice.values["data"]).name:
        return None
    same = (length, seed) == (choice.sequence_length, choice.seed)
    if same and (choice.first or 0) >= blocks:
        return None
    options = f"--blocks {blocks}:"
    options += f" --seed {seed}" if seed != (choice.seed or 0) else ""
    return options + (f" --sequence-length {length}" if length != choice.sequence_length else "")


def default_length(checkpoint: str) -> int:
    """Tokens of a block where nobody says: 512, or all positions of a model that has fewer.

    Raises what opening the checkpoint raises, and UnsupportedError if it holds no model.
    """
    from endor_jax import models
    from endor_jax.store.reader import Checkpoint

    with Checkpoint(checkpoint) as opened:
        return min(512, models.from_hf(opened.model_config()).max_positions)


def tokenizer_at(checkpoint: str) -> Tokenizer:
    """The tokenizer of a checkpoint whose model is not loaded.

    Raises what opening the checkpoint raises, and NotFoundError where it has none.
    """
    from endor_jax.store.reader import Checkpoint
    from endor_jax.text import tokenizer_of

    with Checkpoint(checkpoint) as opened:
        files = {name: opened.read_file(name) for name in opened.manifest.kept_files}
    return tokenizer_of(files, opened.path)
