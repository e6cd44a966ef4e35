"""The two kinds of vocabulary that Llama models come with, as objects of the `tokenizers` library.

Both are byte-pair encodings. *Byte-level* (GPT-2, Llama 3): text is cut by a regular expression, bytes are
written as printable letters, merges are listed by rank. *SentencePiece* (Llama, Llama 2): text is not cut,
spaces are written ▁, the best-scoring merge goes first, characters without a token become byte tokens.

Sources: llama.cpp, src/llama-vocab.cpp (expressions and flags per `tokenizer.ggml.pre`) and the
tokenizer.json of SmolLM2, Llama 3 and Llama 2, whose structure is reproduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """How text is cut before merging: by each expression in turn, matches isolated, the rest kept.

    `digits_apart`: before that, every digit is cut out.
    `whole_words`: a piece that is itself a token is taken as it is, whatever the merges would make of it.
    `adds_start`: a start token is added unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    digits_apart: bool = False
    whole_words: bool = False
    adds_start: bool = False


SPLITTINGS = {
    "gpt-2": Splitting((_GPT2,)),
    # Digits go first: of "a  1", GPT-2's expression alone would leave one of the spaces with the digit.
    "smollm": Splitting((_GPT2,), digits_apart=True),
    "llama-bpe": Splitting((_LLAMA3,), whole_words=True, adds_start=True),
    # What llama.cpp does for files whose converter knew no better: punctuation first, digits in threes last.
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
"""By `tokenizer.ggml.pre`."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with what is special about some: `special` are never part of text, `literal` are text that
    is matched whole before anything else, `merged` are the ordinary ones."""

    tokens: Sequence[str]
    special: frozenset[int]
    literal: frozenset[int]
    merged: frozenset[int]


def byte_level(vocabulary: Vocabulary, merges: Iterable[tuple[str, str]], splitting: Splitting) -> Tokenizer:
    """A GPT-2-like tokenizer. Raises what `tokenizers` raises for merges that are not in the vocabulary."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(merges), ignore_merges=splitting.whole_words))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits_apart else []
    cuts = [pre_tokenizers.Split(Regex(text), behavior="isolated") for text in splitting.expressions]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, *cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocabulary)
    return tokenizer


def sentencepiece(
    vocabulary: Vocabulary, scores: Sequence[float], *, unknown: int | None, space_prefix: bool
) -> Tokenizer:
    """A Llama-2-like tokenizer; `scores` by id rank the merges, `unknown` is the token of last resort.

    `space_prefix`: text is encoded as if it began with a space, and decoding drops that one.
    """
    # Literal tokens are looked for in the text as it came, where spaces are not yet ▁.
    spelling = [
        token.replace("▁", " ") if index in vocabulary.literal else token
        for index, token in enumerate(vocabulary.tokens)
    ]
    vocabulary = Vocabulary(spelling, vocabulary.special, vocabulary.literal, vocabulary.merged)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(spelling)},
            merges=merges_by_score(vocabulary, scores),
            unk_token=None if unknown is None else spelling[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if space_prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    _add_tokens(tokenizer, vocabulary)
    return tokenizer


def merges_by_score(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece would find, best first: every way to cut an ordinary token in two.

    SentencePiece has no list of merges: it joins the neighbours whose union has the best score. Equal scores
    fall to longer left parts, as in transformers' converter.
    """
    ids = {vocabulary.tokens[index]: index for index in sorted(vocabulary.merged)}
    found: list[tuple[float, str, str]] = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((scores[index], left, right))
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def add_template(tokenizer: Tokenizer, *, start: str | None, end: str | None) -> None:
    """Have `encode(..., add_special_tokens=True)` put `start` before and `end` after the text."""
    if start is None and end is None:
        return
    used = [token for token in (start, end) if token is not None]
    single = [*([start] if start is not None else []), "$A", *([end] if end is not None else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *[f"{part}:1" if part != "$A" else "$B:1" for part in single]],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used)],
    )


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    for indices, special in ((vocabulary.special, True), (vocabulary.literal, False)):
        added = [
            AddedToken(vocabulary.tokens[index], normalized=False, special=special)
            for index in sorted(indices)
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)
