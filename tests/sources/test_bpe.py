"""The two kinds of vocabulary against independent definitions: published structures and greedy algorithms."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from endor_jax.sources.bpe import SPLITTINGS, Vocabulary, byte_level, merges_by_score, sentencepiece
from tests.text.tiny_vocabularies import BYTE_LETTERS, PIECES, SCORES, SPM, TOKENS


def splitter(rule: str) -> pre_tokenizers.PreTokenizer:
    tokens = BYTE_LETTERS
    vocabulary = Vocabulary(tokens, frozenset(), frozenset(), frozenset(range(len(tokens))))
    return byte_level(vocabulary, [], SPLITTINGS[rule]).pre_tokenizer


def cut(rule: str, text: str) -> list[str]:
    """The pieces that merges stay inside, as text."""
    return [text[begin:end] for _, (begin, end) in splitter(rule).pre_tokenize_str(text)]


TEXTS = st.text(st.sampled_from("ab Zé中1२½ \t\n\r.,!'$<|👍\u200d")) | st.text()


@settings(deadline=None)
@given(TEXTS)
@example("a  1  b'll\n\n x")
def test_published_structures(text: str) -> None:
    """tokenizer.json of GPT-2 has ByteLevel alone, that of SmolLM2 has Digits before it."""
    cutting = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cutting])
    assert splitter("gpt-2").pre_tokenize_str(text) == cutting.pre_tokenize_str(text)
    assert splitter("smollm").pre_tokenize_str(text) == digits.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("smollm", "a  12", ["a", "  ", "1", "2"]),
        ("gpt-2", "a  12", ["a", " ", " 12"]),
        (
            "llama-bpe",
            "It'S 12345 o'clock\n\n  x",
            ["It", "'S", " ", "123", "45", " o", "'clock", "\n\n", " ", " x"],
        ),
        ("llama-bpe", "a.b(c)\n", ["a", ".b", "(c", ")\n"]),
        # Punctuation goes first, so no space joins it, and numbers are cut from the left.
        ("default", "Hi, $12345 <b>", ["Hi", ",", " ", "$", "123", "45", " ", "<", "b", ">"]),
    ],
)
def test_cuts_by_hand(rule: str, text: str, pieces: list[str]) -> None:
    assert cut(rule, text) == pieces


def test_whole_words_need_no_merges() -> None:
    tokens = [*BYTE_LETTERS, "abc"]
    vocabulary = Vocabulary(tokens, frozenset(), frozenset(), frozenset(range(len(tokens))))
    assert byte_level(vocabulary, [], SPLITTINGS["llama-bpe"]).encode("abc").ids == [len(tokens) - 1]
    assert len(byte_level(vocabulary, [], SPLITTINGS["gpt-2"]).encode("abc").ids) == 3


def greedy(text: str) -> list[int]:
    """SentencePiece by its definition: join the neighbours with the best score, the leftmost first."""
    if not text:
        return []
    ids: list[int] = []
    for letter in "▁" + text.replace(" ", "▁"):
        known = letter in PIECES
        ids += [TOKENS.index(letter)] if known else [3 + byte for byte in letter.encode()]
    while True:
        best, at = -1e10, -1
        for i in range(len(ids) - 1):
            joined = TOKENS[ids[i]] + TOKENS[ids[i + 1]]
            if joined in PIECES and SCORES[TOKENS.index(joined)] > best:
                best, at = SCORES[TOKENS.index(joined)], i
        if at < 0:
            return ids
        ids[at : at + 2] = [TOKENS.index(TOKENS[ids[at]] + TOKENS[ids[at + 1]])]


def spm(*, space_prefix: bool = True) -> Tokenizer:
    return sentencepiece(SPM, SCORES, unknown=0, space_prefix=space_prefix)


@settings(deadline=None)
@given(st.text(st.sampled_from("abc é中😀\n")))
def test_sentencepiece_is_the_greedy_algorithm(text: str) -> None:
    assert spm().encode(text).ids == greedy(text)


@settings(deadline=None)
@given(st.text(st.sampled_from("abc é中😀\n▁"), min_size=1))
def test_sentencepiece_decodes_what_it_encoded(text: str) -> None:
    for space_prefix in (True, False):
        tokenizer = spm(space_prefix=space_prefix)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace("▁", " ")


def test_without_space_prefix() -> None:
    assert spm(space_prefix=False).encode("ab").tokens == ["ab"]
    assert spm().encode("ab").tokens == ["▁ab"]


def test_special_and_literal_tokens_are_matched_whole() -> None:
    tokenizer = spm()
    assert tokenizer.encode("ab</s><tool>").tokens == ["▁ab", "</s>", "<tool>"]
    ids = tokenizer.encode("ab</s><tool>").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<tool>"


def test_literal_tokens_are_spelled_with_spaces() -> None:
    tokens = ["<unk>", "▁", "a", "▁▁▁"]
    vocabulary = Vocabulary(tokens, frozenset({0}), literal=frozenset({3}), merged=frozenset({1, 2}))
    tokenizer = sentencepiece(vocabulary, [0.0] * 4, unknown=0, space_prefix=False)
    assert tokenizer.encode("a   a").ids == [2, 3, 2]
    assert tokenizer.get_vocab_size() == 4
    assert tokenizer.decode([2, 3, 2]) == "a   a"


def test_bytes_and_special_tokens_are_never_merged() -> None:
    merged = {left + right for left, right in merges_by_score(SPM, SCORES)}
    assert merged == {piece for piece in PIECES if len(piece) > 1 and piece != "aaaa"} | {"aaaa"}
