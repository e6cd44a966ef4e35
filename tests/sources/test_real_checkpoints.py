"""Real models against torch transformers: SmolLM2 and a tiny GGUF, stories15M, an export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from endor_jax.errors import MissingDependencyError
from endor_jax.sources import locate, open_source, to_hf, write_safetensors
from endor_jax.text import load_tokenizer
from tests import real_models
from tests.sources.tiny_gguf import VOCABULARY, hf_tensors, write_gguf

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return real_models.smollm2_gguf()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def stories() -> Path:
    try:
        return real_models.stories15m()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_tiny_gguf_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf",
        hf_tensors(tied=False),
        lambda writer: writer.add_vocab_size(VOCABULARY),
        q_proj=gguf.GGMLQuantizationType.Q8_0,
        gate_proj=gguf.GGMLQuantizationType.Q5_1,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    source = open_source(path)
    assert source.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert np.array_equal(source.read(name), tensor.float().numpy()), name


def test_smollm2_is_read_as_transformers_reads_it(smollm2: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    with open_source(smollm2) as source:
        assert len(locate(source)) == 272
        for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "head_dim"):
            assert source.config[key] == getattr(model.config, key)
        parameters = dict(model.named_parameters())
        assert source.tensors.keys() == parameters.keys()
        for part in ("embed_tokens", "layers.0.self_attn", "layers.29.", "model.norm"):
            for name in (name for name in source.tensors if part in name):
                assert np.array_equal(source.read(name), parameters[name].detach().numpy()), name


def test_stories15m_tells_a_story(stories: Path) -> None:
    """The text that llama2.c prints for this model at temperature 0: rotation, norms and head are right."""
    tokenizer = load_tokenizer(stories)
    model = transformers.AutoModelForCausalLM.from_pretrained(stories)
    prompt = torch.tensor([tokenizer.encode("Once upon a time")])
    ids = model.generate(prompt, max_new_tokens=40, do_sample=False)[0].tolist()
    assert tokenizer.decode(ids).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. "
        "One day, she saw a big, red ball in the sky."
    )


def llama2c_encode(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """run.c's `encode`, start token included, with the space in front."""
    table = {piece: index for index, piece in enumerate(pieces) if index >= real_models.FIRST_PIECE}
    ids: list[int] = []
    for letter in " " + text if text else "":
        raw = letter.encode()
        ids += [table[raw]] if raw in table else [real_models.FIRST_BYTE + byte for byte in raw]
    while True:
        best, at = -1e10, -1
        for i in range(len(ids) - 1):
            # Byte tokens have no text that could be joined.
            joined = table.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if (
                min(ids[i : i + 2]) >= real_models.FIRST_PIECE
                and joined is not None
                and scores[joined] > best
            ):
                best, at = scores[joined], i
        if at < 0:
            return [real_models.START, *ids]
        ids[at : at + 2] = [table[pieces[ids[at]] + pieces[ids[at + 1]]]]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time",
        "",
        " ",
        "  two spaces, then   three\n\n\ttab",
        "In 2024 it cost $1,234.56 (really!)",
        "def f(x):\n    return x**2  # comment",
        "你好,世界! Привет, мир. ¿Qué tal?",
        "family 👩‍👩‍👧 and flag 🇫🇷",
        "aaaaaaaaaaaaaaaaa",
        "    " * 9 + "x",
    ],
)
def test_stories_tokens_are_those_of_llama2c(stories: Path, text: str) -> None:
    pieces, scores = real_models.llama2c_vocabulary(real_models.stories_tokenizer_bin())
    tokenizer = load_tokenizer(stories)
    assert tokenizer.encode(text) == llama2c_encode(text, pieces, scores)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_export_loads_in_transformers(stories: Path, tmp_path: Path) -> None:
    """Source -> places -> names -> shards, and the same logits."""
    with open_source(stories) as source:
        places = locate(source)
        names = {to_hf("llama", place): name for place, name in places.items()}
        written = write_safetensors(
            tmp_path / "export",
            ((name, source.read(stored)) for name, stored in names.items()),
            infos={name: source.tensors[stored] for name, stored in names.items()},
            files=source.files(),
            shard_bytes=20_000_000,
        )
    assert len(written) == 3 + 1 + 4  # the embedding alone is larger than a shard
    ids = torch.arange(3, 40)[None]
    logits = [
        transformers.AutoModelForCausalLM.from_pretrained(path)(ids).logits
        for path in (stories, tmp_path / "export")
    ]
    assert torch.equal(*logits)


def test_two_processes_make_the_model_once(tmp_path: Path, stories: Path) -> None:
    """Both wait for one lock, then find the finished directory."""
    environment = {**os.environ, "ENDOR_CACHE": str(tmp_path)}
    os.link(real_models.cache_directory() / "llama2.data", tmp_path / "llama2.data")
    command = [sys.executable, "-c", "from tests.real_models import stories15m; stories15m()"]
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert (tmp_path / stories.name / "model.safetensors").read_bytes() == (
        stories / "model.safetensors"
    ).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".stories15m-")]
