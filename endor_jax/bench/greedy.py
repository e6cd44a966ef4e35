"""Greedy generation with a torch model, without what `transformers.generate` does beside it. No JAX here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def greedy(model: Any, device: str = "cpu") -> Callable[[Sequence[int], int], Iterator[int]]:
    """A causal language model of transformers as a function: (prompt ids, tokens) -> tokens as they come.

    The model is called with its own cache of keys and values, and makes the logits of the last token only.
    """
    torch: Any = importlib.import_module("torch")

    def generate(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        ids, cache = torch.tensor([list(prompt)], device=device), None
        for _ in range(tokens):
            with torch.inference_mode():
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            yield int(ids)

    return generate
