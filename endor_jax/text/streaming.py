"""Text of tokens as they come, held back while more tokens could still change it.

A token may be half a character, so decoding tokens one by one is wrong. The promise here is exact: all that
`feed` and `finish` return, joined, is what decoding all ids at once gives.

`tokenizers.decoders.DecodeStream` does not keep it. It returns a character as soon as its bytes are there,
but the byte-fallback decoder of Llama-like vocabularies judges a *run* of byte tokens as a whole: <C3><A9> is
"é", <C3><A9><F0> is "���". DecodeStream has given out "é" by then, and raises "Invalid prefix encountered"
at every later token. Nor does it ever return what is held back at the end.

So text waits for the end of a run of byte tokens. Byte-level vocabularies (GPT-2, Llama 3) have none and
wait for the end of a character only.
"""

from __future__ import annotations

from collections.abc import Iterable

from endor_jax.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class StreamingDecoder:
    """Decodes one token after another. One use per text; not for several threads.

    Invariant: `_context` are ids whose text is out already and `_pending` ids whose text is not, and no id to
    come can change the text of `_context`. Given the ids of a prompt, the text is what follows the prompt's:
    its first space is kept, and a character that the prompt leaves half finished comes out whole.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_ids: Iterable[int] = (), skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._pending: list[int] = []
        self._context = [index for index in prompt_ids if self._is_visible(index)]
        while self._context and self._may_change(self._context[-1], self._decode(self._context)):
            self._pending.insert(0, self._context.pop())
        self._context_text = self._decode(self._context)

    def feed(self, token_id: int) -> str:
        """The text that is certain now and was not before; may be empty."""
        if not self._is_visible(token_id):
            return ""
        self._pending.append(token_id)
        if token_id in self._tokenizer.byte_ids:
            return ""
        text = self._decode(self._context + self._pending)
        if self._may_change(token_id, text) or not text.startswith(self._context_text):
            return ""
        return self._release(text)

    def finish(self) -> str:
        """What is still held back, with U+FFFD for bytes that make no character."""
        return self._release(self._decode(self._context + self._pending))

    def _release(self, text: str) -> str:
        new = text[len(self._context_text) :]
        # Without new text the context stays: alone, these ids would decode like the start of a text.
        if new:
            self._context, self._pending = self._pending, []
            self._context_text = self._decode(self._context)
        return new

    def _is_visible(self, token_id: int) -> bool:
        """Decoding drops special ids, and ids without a token, before anything else: bytes on both sides of
        one are still one run, so it must not count as the end of a run."""
        if self._skip_special and token_id in self._tokenizer.skipped_ids:
            return False
        return self._tokenizer.backend.id_to_token(token_id) is not None

    def _may_change(self, last_id: int, text: str) -> bool:
        """An unfinished character at the end, or a run of byte tokens that may go on."""
        return text.endswith(_REPLACEMENT) or last_id in self._tokenizer.byte_ids

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
