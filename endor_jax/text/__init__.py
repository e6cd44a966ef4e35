"""Text to token ids and back: tokenizer files, chat templates, streaming, stop strings."""

from endor_jax.text.chat import render as render
from endor_jax.text.stop import StopStrings as StopStrings
from endor_jax.text.streaming import StreamingDecoder as StreamingDecoder
from endor_jax.text.tokenizer import Tokenizer as Tokenizer
from endor_jax.text.tokenizer import load_tokenizer as load_tokenizer
from endor_jax.text.tokenizer import tokenizer_of as tokenizer_of
