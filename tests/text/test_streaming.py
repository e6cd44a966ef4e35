"""Streaming: what comes out piece by piece is what decoding everything at once gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from endor_jax.text import StreamingDecoder, Tokenizer
from tests.text.tiny_vocabularies import GPT2_METADATA, TOKENS

# Ids of the emoji's bytes are drawn often, so that whole, cut and mixed up characters occur.
SPM_BYTES = [3 + byte for byte in "é😀中 ".encode()]
BYTE_LEVEL = [GPT2_METADATA["tokens"].index(letter) for letter in "Ã©ðŁĺĢĠ"]
IDS = st.lists(st.sampled_from(SPM_BYTES) | st.sampled_from(BYTE_LEVEL) | st.integers(0, len(TOKENS) + 5))


def stream(decoder: StreamingDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.feed(index) for index in ids), decoder.finish()]


@settings(deadline=None)
@given(ids=IDS, skip_special=st.booleans())
def test_pieces_join_to_the_whole(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    pieces = stream(StreamingDecoder(tokenizer, skip_special=skip_special), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)


@settings(deadline=None)
@given(prompt=IDS, ids=IDS, skip_special=st.booleans())
def test_after_a_prompt_the_pieces_complete_its_text(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip_special: bool
) -> None:
    decoder = StreamingDecoder(tokenizer, prompt_ids=prompt, skip_special=skip_special)
    text = "".join(stream(decoder, ids))
    whole = tokenizer.decode(prompt + ids, skip_special=skip_special)
    assert whole.endswith(text)
    # What stands before it is the prompt's, up to characters that the prompt left unfinished.
    assert tokenizer.decode(prompt, skip_special=skip_special).startswith(whole[: len(whole) - len(text)])


@settings(deadline=None)
@given(text=st.text())
def test_any_text_arrives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert "".join(stream(StreamingDecoder(tokenizer), ids)) == tokenizer.decode(ids)


def test_a_character_comes_out_whole_and_at_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀b", add_special=False)
    pieces = stream(StreamingDecoder(tokenizer), ids)
    assert "".join(pieces) == "a😀b"
    assert all("\ufffd" not in piece for piece in pieces)
    assert [piece for piece in pieces if piece] in (["a", "😀", "b"], ["a", "😀b"])


def test_the_space_after_a_prompt_is_kept(spm: Tokenizer) -> None:
    prompt, continuation = spm.encode("abc"), spm.encode("ab", add_special=False)
    assert spm.decode(continuation) == "ab"
    assert "".join(stream(StreamingDecoder(spm, prompt_ids=prompt), continuation)) == " ab"


def test_a_run_of_bytes_is_judged_as_a_whole(spm: Tokenizer) -> None:
    """The reason not to use DecodeStream: it has said "é" before the third byte makes the run invalid."""
    ids = [3 + byte for byte in b"\xc3\xa9\xf0"]
    assert spm.decode(ids) == "\ufffd" * 3
    assert stream(StreamingDecoder(spm), ids) == ["", "", "", "\ufffd" * 3]
    theirs = DecodeStream(skip_special_tokens=True)
    assert [theirs.step(spm.backend, index) for index in ids] == [None, "é", None]
    with pytest.raises(Exception, match="Invalid prefix"):
        theirs.step(spm.backend, TOKENS.index("a"))


def test_special_tokens_do_not_end_a_run(spm: Tokenizer) -> None:
    end = TOKENS.index("</s>")
    ids = [3 + 0xC3, end, 3 + 0xA9, TOKENS.index("a")]
    assert stream(StreamingDecoder(spm), ids) == ["", "", "", "éa", ""]
    assert "".join(stream(StreamingDecoder(spm, skip_special=False), ids)) == "\ufffd</s>\ufffda"


def test_finish_twice_gives_nothing_more(tokenizer: Tokenizer) -> None:
    decoder = StreamingDecoder(tokenizer)
    decoder.feed(SPM_BYTES[0])
    decoder.finish()
    assert decoder.finish() == ""
