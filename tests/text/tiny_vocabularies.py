"""Vocabularies small enough to work through by hand: SentencePiece with byte tokens, and byte-level."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers

from endor_jax.sources.bpe import Vocabulary

BYTE_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())

PIECES = ["▁", "a", "b", "c", "ab", "▁a", "bc", "abc", "▁ab", "aa", "▁▁", "aaaa", "ca", "▁abc", "é", "中"]
FIRST = 3 + 256
TOKENS = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *PIECES, "<tool>"]
SCORES = [0.0] * FIRST + [-float(rank) for rank in (9, 9, 9, 9, 2, 4, 3, 8, 7, 5, 1, 6, 10, 11, 9, 9)] + [0.0]
SPM = Vocabulary(
    TOKENS,
    special=frozenset({0, 1, 2}),
    literal=frozenset({len(TOKENS) - 1}),
    merged=frozenset(range(FIRST, FIRST + len(PIECES))),
)

GPT2_METADATA: dict[str, Any] = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": ["<|start|>", "<|end|>", *BYTE_LETTERS, "he", "Ġhe", "<think>"],
    "token_type": [3, 3, *[1] * (len(BYTE_LETTERS) + 2), 4],
    "merges": ["h e", "Ġ he"],
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SPM_METADATA: dict[str, Any] = {
    "model": "llama",
    "tokens": TOKENS,
    "scores": SCORES,
    "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(TOKENS) - 260), 4],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}
"""The same as GGUF metadata, under keys without "tokenizer.ggml."."""
