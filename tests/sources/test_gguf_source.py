"""Reading GGUF: names, row order, dequantised values, config, and everything that is refused."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from endor_jax.sources import Source, TensorInfo, locate, open_source
from endor_jax.sources.gguf import unpermute
from tests.sources.tiny_gguf import HIDDEN, VOCABULARY, hf_tensors, permute, write_gguf


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_float32_comes_back_exactly(tmp_path: Path, bias: bool, tied: bool) -> None:
    tensors = hf_tensors(bias=bias, tied=tied)
    with open_source(write_gguf(tmp_path / "tiny.gguf", tensors)) as source:
        assert isinstance(source, Source)
        assert source.tensors == {name: TensorInfo(array.shape, "float32") for name, array in tensors.items()}
        for name, array in tensors.items():
            got = source.read(name)
            assert np.array_equal(got, array), name
            got[:] = 0  # ours to change
        assert len(locate(source)) == len(tensors)
        assert source.config["attention_bias"] is bias
        assert source.config["tie_word_embeddings"] is tied


def test_rows_of_the_query_by_hand() -> None:
    """With one head of 6 rows, llama.cpp stores 0 3 1 4 2 5: each pair that RoPE turns is neighbours."""
    stored = np.array([0, 3, 1, 4, 2, 5])
    assert unpermute(stored, 1).tolist() == [0, 1, 2, 3, 4, 5]
    two_heads = np.concatenate([stored, stored + 6])[:, None]
    assert unpermute(two_heads, 2)[:, 0].tolist() == list(range(12))


@settings(deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 5), width=st.integers(1, 3))
def test_unpermute_undoes_llama_cpp(heads: int, half: int, width: int) -> None:
    array = np.arange(heads * half * 2 * width).reshape(-1, width)
    assert np.array_equal(unpermute(permute(array, heads), heads), array)


def test_blocks_are_expanded(tmp_path: Path) -> None:
    tensors = hf_tensors()
    kinds = {
        "q_proj": gguf.GGMLQuantizationType.Q8_0,
        "up_proj": gguf.GGMLQuantizationType.Q4_0,
        "down_proj": gguf.GGMLQuantizationType.F16,
        "embed_tokens": gguf.GGMLQuantizationType.BF16,
    }
    source = open_source(write_gguf(tmp_path / "tiny.gguf", tensors, **kinds))
    for name, array in tensors.items():
        kind = kinds.get(name.rsplit(".", 2)[-2])
        got = source.read(name)
        assert (got.dtype, got.shape) == (np.float32, array.shape)
        expected = array if kind is None else gguf.dequantize(gguf.quantize(array, kind), kind)
        # Blocks are along rows, so permuting rows and quantising commute.
        assert np.array_equal(got, expected), name


def test_config_in_hugging_face_form(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path / "tiny.gguf", hf_tensors()))
    assert source.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    files = source.files()
    assert json.loads(files["config.json"]) == source.config
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [2, 5], "bos_token_id": 1}
    assert "tokenizer.json" not in files


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    config = open_source(write_gguf(tmp_path / "tiny.gguf", hf_tensors(), scaled)).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_factor_without_a_kind_is_linear_as_in_llama_cpp(tmp_path: Path) -> None:
    for i, key in enumerate(("llama.rope.scaling.factor", "llama.rope.scale_linear")):
        path = tmp_path / f"{i}.gguf"
        source = open_source(write_gguf(path, hf_tensors(), lambda w, key=key: w.add_float32(key, 2.0)))
        assert source.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_factor_of_kind_none_means_nothing(tmp_path: Path) -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(4.0)

    assert open_source(write_gguf(tmp_path / "a.gguf", hf_tensors(), scaled)).config["rope_scaling"] is None


def test_rope_factors_of_one_mean_nothing(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf",
        hf_tensors(),
        lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
    )
    assert open_source(path).tensors.keys() == hf_tensors().keys()


REFUSED = {
    "rope factors": (
        lambda w: w.add_tensor("rope_freqs.weight", np.arange(4, dtype=np.float32)),
        "rope_freqs",
    ),
    "experts": (lambda w: w.add_expert_count(8), "8 experts"),
    "unknown rope key": (lambda w: w.add_float32("llama.rope.scaling.alpha", 2.0), "scaling.alpha 2.0"),
    "attention factor": (lambda w: w.add_rope_scaling_attn_factors(0.5), "attn_factor 0.5"),
    "yarn": (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "yarn"),
    "partial rotation": (lambda w: w.add_rope_dimension_count(4), "rope.dimension_count 4"),
    "narrow values": (lambda w: w.add_value_length(4), "value_length 4"),
    "several files": (lambda w: w.add_uint16("split.count", 3), "one of 3 files.*--merge"),
    "block type": (lambda w: w.add_tensor("blk.0.x", np.zeros(32, np.int8)), "'blk.0.x'.*ggml type 24"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_variants_are_refused(tmp_path: Path, case: str) -> None:
    edit, message = REFUSED[case]
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors(), edit)
    with pytest.raises(UnsupportedError, match=message):
        open_source(path)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors(), architecture="qwen2")
    with pytest.raises(UnsupportedError, match="architecture 'qwen2'"):
        open_source(path)


def test_heads_that_differ_between_layers(tmp_path: Path) -> None:
    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(2)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length([64, 32])

    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors(), metadata=metadata)
    with pytest.raises(UnsupportedError, match=r"feed_forward_length \[64, 32\]"):
        open_source(path)


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf",
        hf_tensors(),
        lambda w: w.add_tensor("blk.0.surprise.weight", np.zeros(4, np.float32)),
    )
    with pytest.raises(InvalidInputError, match=r"blk\.0\.surprise\.weight"):
        open_source(path)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors(), metadata=lambda w: w.add_context_length(128))
    with pytest.raises(InvalidInputError, match=r"no llama\.block_count"):
        open_source(path)


CONTRADICTIONS = {
    "rows of the query": (lambda w: w.add_key_length(10), r"q_proj\.weight.*got 32 rows, expected 40"),
    "alignment": (lambda w: w.add_uint32("general.alignment", 0), "general.alignment 0"),
    "rope divisors": (
        lambda w: w.add_tensor("rope_freqs.weight", np.ones(3, np.float32)),
        r"rope_freqs.*got shape \(3,\), expected \(4,\)",
    ),
    "factor": (
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(0.0)),
        "factor 0.0.*positive float",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_metadata_that_cannot_be(tmp_path: Path, case: str) -> None:
    edit, message = CONTRADICTIONS[case]
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors(), edit)
    with pytest.raises(InvalidInputError, match=message):
        open_source(path)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'blk\.0\.attn_q\.weight'"):
        open_source(write_gguf(tmp_path / "tiny.gguf", hf_tensors())).read("blk.0.attn_q.weight")


def test_truncated_data(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    path.write_bytes(path.read_bytes()[:-2048])
    with pytest.raises(InvalidInputError, match=r"tensor '.*' of .*tiny\.gguf.*inside the file"):
        open_source(path)


@pytest.mark.parametrize("version", [1, 4])
def test_other_versions(tmp_path: Path, version: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    data = bytearray(path.read_bytes())
    data[4] = version
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match=f"version {version}"):
        open_source(path)


def test_big_endian(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    data = bytearray(path.read_bytes())
    data[4:8] = b"\0\0\0\3"
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_source(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_reported_as_ours(tmp_path: Path, data: st.DataObject) -> None:
    """A changed byte or an early end in the header never gives anything but our errors."""
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    content = bytearray(path.read_bytes())
    header = 2500
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(4, header))]
    else:
        content[data.draw(st.integers(4, header))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(InvalidInputError, UnsupportedError):
        source = open_source(path)
        for name in source.tensors:
            source.read(name)


def test_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", hf_tensors())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'endor_jax\[gguf\]'"):
        open_source(path)
