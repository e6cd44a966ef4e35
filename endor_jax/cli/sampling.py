"""The options of every verb that samples: mlx-lm's names."""

from __future__ import annotations

from typing import Annotated

import typer

Temp = Annotated[float, typer.Option(help="Temperature; 0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total.")]
TopK = Annotated[int, typer.Option(help="Sample from this many of the likeliest tokens; 0: all.")]
MinP = Annotated[
    float, typer.Option(help="Sample from tokens at least this many times as likely as the likeliest.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1 makes tokens of the prompt and the text less likely.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text. May be given several times.")]
Seed = Annotated[int, typer.Option(help="Of the sampling.")]
