"""Random models as transformers saves them, and what transformers computes with them. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEW_TOKENS = 40


def save_random(
    family: str, config: dict[str, Any], directory: Path, *, low: str | None = None, shard: str = "5GB"
) -> Path:
    """A random float32 model as transformers itself saves it; matrices of layers in dtype `low`, if given."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**config))
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide a wrong name
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    if low:
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(getattr(torch, low))
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def reference(directory: Path, **changes: Any) -> Any:
    """The model as transformers loads it, in float32, with `changes` to its config."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=torch.float32, **changes).eval()


def torch_greedy(model: Any, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """Greedy tokens by transformers' own generate, and its logits for prompt and tokens."""
    ids = torch.tensor([prompt])
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generated[0, len(prompt) :].tolist(), torch_logits(model, generated[0].tolist())


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    """(length, vocabulary) float32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()
