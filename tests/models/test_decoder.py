"""Decoder: names and shapes, chunks against single tokens, trace counts, refused parameters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import models
from endor_jax.errors import InvalidInputError
from endor_jax.format.encode import encode_array, encode_record
from endor_jax.format.layout import TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.values import parse_codec

pytestmark = pytest.mark.usefixtures("compiled_quickly")
IDS = np.random.default_rng(7).integers(0, 61, size=(2, 23))
START = jnp.zeros(2, jnp.int32)
# A decoder is hashable, so it may be static.
BLOCK = jax.jit(models.block, static_argnums=0)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_names_and_shapes_llama(config):
    decoder = models.decoder(config)
    assert decoder.stem_shapes == {}
    assert decoder.final_shapes == {"norm.scale": (32,)}
    assert decoder.block_shapes == {
        "attention.key.bias": (16,),
        "attention.key.weight": (16, 32),
        "attention.output.bias": (32,),
        "attention.output.weight": (32, 32),
        "attention.query.bias": (32,),
        "attention.query.weight": (32, 32),
        "attention.value.bias": (16,),
        "attention.value.weight": (16, 32),
        "attention_norm.scale": (32,),
        "mlp.down.bias": (32,),
        "mlp.down.weight": (32, 48),
        "mlp.gate.bias": (48,),
        "mlp.gate.weight": (48, 32),
        "mlp.up.bias": (48,),
        "mlp.up.weight": (48, 32),
        "mlp_norm.scale": (32,),
    }
    plain = models.decoder(
        dataclasses.replace(config, qkv_bias=False, output_bias=False, mlp_bias=False, head_dim=6)
    )
    assert not [name for name in plain.block_shapes if name.endswith("bias")]
    assert plain.block_shapes["attention.query.weight"] == (24, 32)
    assert plain.block_shapes["attention.output.weight"] == (32, 24)


@pytest.mark.parametrize("config", ["opt"], indirect=True)
def test_names_and_shapes_opt(config):
    decoder = models.decoder(config)
    assert decoder.stem_shapes == {"positions": (42, 32)}
    assert decoder.final_shapes == {"norm.bias": (32,), "norm.scale": (32,)}
    assert {name for name in decoder.block_shapes if not name.startswith("attention.")} == {
        *("attention_norm.bias", "attention_norm.scale", "mlp_norm.bias", "mlp_norm.scale"),
        *("mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "mlp.down.bias"),
    }
    assert decoder.block_shapes["mlp.up.weight"] == (48, 32)


@pytest.mark.parametrize("config", ["qwen3"], indirect=True)
def test_names_and_shapes_with_norms_of_heads_and_biases_of_some_matrices(config):
    shapes = models.decoder(config).block_shapes
    assert shapes["attention.query_norm.scale"] == shapes["attention.key_norm.scale"] == (8,)
    assert [name for name in shapes if name.endswith("bias") and name.startswith("attention")] == [
        "attention.output.bias"
    ]


@pytest.mark.parametrize("config", ["opt-350m"], indirect=True)
def test_names_and_shapes_of_narrow_embeddings(config):
    decoder = models.decoder(config)
    assert decoder.stem_shapes == {"positions": (42, 32), "project_in.weight": (32, 24)}
    assert decoder.final_shapes == {"project_out.weight": (24, 32)}
    shapes = models.part_shapes(decoder)
    assert shapes["embedding"] == {"weight": (61, 24)}
    assert "attention_norm.scale" in shapes["layers.2"]


@pytest.mark.parametrize("config", ["opt-bare"], indirect=True)
def test_a_part_without_parameters_is_none(config):
    decoder = models.decoder(config)
    assert list(models.part_shapes(decoder)) == ["embedding", "stem", "layers.0", "layers.1", "layers.2"]
    assert set(decoder.block_shapes) == set(decoder.block_inputs)


@pytest.mark.parametrize("config", ["llama", "qwen3"], indirect=True)
def test_a_window_hides_what_is_older(model, config):
    """Another first token changes the logits of what sees it, through as many layers as there are."""
    other = IDS.copy()
    other[:, 0] = (other[:, 0] + 1) % 61
    one, two = (model.logits(ids, model.caches(batch=2, capacity=23), start=0) for ids in (IDS, other))
    window = getattr(config, "window", None)
    reach = 23 if window is None else config.layers * (window - 1) + 1
    changed = np.abs(one - two).max(axis=(0, 2)) > 0
    assert changed.tolist() == [position < reach for position in range(23)]


def test_building_touches_no_device(config):
    before = jax.live_arrays()  # held, so that none goes meanwhile
    with jax.transfer_guard("disallow"):
        decoder = models.decoder(dataclasses.replace(config, hidden_size=2**20, intermediate_size=2**22))
    assert len(jax.live_arrays()) == len(before)
    assert decoder.block_shapes["mlp.up.weight"] == (2**22, 2**20)


def test_equal_configs_make_equal_decoders(config):
    one, other = models.decoder(config), models.decoder(dataclasses.replace(config))
    assert one == other
    assert hash(one) == hash(other)
    assert one.block.graphdef == other.block.graphdef
    assert one != models.decoder(dataclasses.replace(config, heads=2, layers=1))


@pytest.mark.parametrize(
    ("config", "chunk"),
    [
        *(("llama", chunk) for chunk in (1, 5, 8)),
        *(("opt", chunk) for chunk in (1, 5, 8)),
        # A window of 6 is shorter than the larger chunk, and ends within the smaller one.
        *(("qwen3", chunk) for chunk in (5, 8)),
        *(("opt-350m", 5), ("opt-bare", 5)),
    ],
    indirect=["config"],
)
def test_chunks_agree_with_single_tokens(model, chunk: int):
    more = np.array([[4], [9]])
    whole = model.logits(np.concatenate([IDS, more], axis=1), model.caches(batch=2, capacity=24), start=0)
    # The last chunk is padded with other tokens, past the end of the prompt.
    padded = np.pad(IDS, ((0, 0), (0, -23 % chunk)), constant_values=3)
    caches = model.caches(batch=2, capacity=padded.shape[1] + 4)
    pieces = [
        model.logits(padded[:, start : start + chunk], caches, start=start)
        for start in range(0, padded.shape[1], chunk)
    ]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[:, :23], whole[:, :23], atol=1e-4)
    # What the padding left in the caches is overwritten by the tokens that follow.
    following = model.logits(more, caches, start=23)
    np.testing.assert_allclose(following[:, 0], whole[:, -1], atol=1e-4)


def test_padding_beyond_the_last_position_moves_nothing(model):
    # 40 positions in chunks of 16: the last chunk reaches to 48.
    ids = np.random.default_rng(8).integers(0, 61, size=(1, 48))
    caches = model.caches(batch=1, capacity=48)
    pieces = [model.logits(ids[:, start : start + 16], caches, start=start) for start in (0, 16, 32)]
    whole = model.logits(ids[:, :40], model.caches(batch=1, capacity=40), start=0)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[:, :40], whole, atol=1e-4)


def test_one_trace_serves_all_layers_and_positions(model):
    caches = model.caches(batch=2, capacity=32)
    for start in (0, 8):
        model.logits(IDS[:, start : start + 8], caches, start=start)
    assert model.traces == {"stem": 1, "block": 1, "final": 1}
    for start in range(16, 23):
        model.logits(IDS[:, start : start + 1], caches, start=start)
    assert model.traces == {"stem": 2, "block": 2, "final": 2}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_x_keeps_the_compute_dtype(model, dtype):
    decoder, config = model.decoder, model.decoder.config
    cache = models.create_cache(
        batch=1, capacity=4, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=dtype
    )
    rows = jnp.ones((1, 4, config.embedding_size), dtype)
    x = models.stem(decoder, model.stem, rows, START[:1])
    # Norms and biases may be stored in a wider dtype than the matrices.
    params = {
        name: value.astype(dtype) if value.ndim > 1 else value for name, value in model.layers[0].items()
    }
    x, cache = BLOCK(decoder, params, x, cache, START[:1])
    x = models.final(decoder, model.final, x)
    assert x.dtype == cache.keys.dtype == dtype


def test_sequences_at_different_positions_are_independent(model):
    """A ragged batch gives what each of its sequences gives alone."""
    lengths, more = [11, 4], IDS[:, 11:13]
    caches = model.caches(batch=2, capacity=23)
    model.logits(IDS, caches, start=0)  # what lies behind a sequence's own positions must not be seen
    together = model.logits(more, caches, start=np.array(lengths))
    for row, length in enumerate(lengths):
        alone = np.concatenate([IDS[row, :length], more[row]])[None]
        expected = model.logits(alone, model.caches(batch=1, capacity=23), start=0)
        np.testing.assert_allclose(together[row], expected[0, length:], atol=1e-5)


def test_compressed_parameters(model):
    decoder, params = model.decoder, model.layers[0]
    x = model.x(IDS)
    expected, _ = BLOCK(decoder, params, x, model.caches(batch=2, capacity=23)[0], START)
    tensors = {
        name: encode_array(np.asarray(value), "raw") if value.ndim > 1 else value
        for name, value in params.items()
    }
    y, _ = BLOCK(decoder, tensors, x, model.caches(batch=2, capacity=23)[0], START)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_views_of_a_record(model):
    decoder, params = model.decoder, {name: np.asarray(value) for name, value in model.layers[0].items()}
    layout = plan_layout(
        {
            name: TensorSpec(value.shape, "float32", parse_codec("raw") if value.ndim > 1 else None)
            for name, value in params.items()
        }
    )
    encoded = encode_record(layout, params)
    record = Record(tuple(jnp.asarray(part) for part in encoded.parts), layout)

    def layer(record, x, cache):
        return models.block(decoder, {name: record[name] for name in record}, x, cache, START)

    x = model.x(IDS)
    y, _ = jax.jit(layer)(record, x, model.caches(batch=2, capacity=23)[0])
    expected, _ = BLOCK(decoder, model.layers[0], x, model.caches(batch=2, capacity=23)[0], START)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("config", ["llama", "qwen3", "opt", "opt-350m"], indirect=True)
def test_tapped_inputs(model, config):
    decoder, params = model.decoder, model.layers[0]
    x = model.x(IDS)
    cache = model.caches(batch=2, capacity=23)[0]
    tapped = jax.jit(lambda params, x, cache: models.tapped_block(decoder, params, x, cache, START))
    y, _, inputs = tapped(params, x, cache)
    matrices = {name: shape for name, shape in decoder.block_shapes.items() if len(shape) == 2}
    assert {name: value.shape[-1] for name, value in inputs.items()} == {
        name: shape[1] for name, shape in matrices.items()
    }
    np.testing.assert_allclose(y, BLOCK(decoder, params, x, cache, START)[0], atol=1e-5)
    # Matrices that are said to have the same input have, and others have another.
    same = decoder.block_inputs
    assert same.keys() == inputs.keys()
    for name, first in same.items():
        np.testing.assert_array_equal(inputs[name], inputs[first])
    distinct = {np.asarray(inputs[first]).tobytes() for first in same.values()}
    assert len(distinct) == len(set(same.values()))
    if not getattr(config, "pre_norm", True):
        return  # a norm stands behind the last product
    # The last product of a block, redone from what was tapped.
    down = np.asarray(inputs["mlp.down.weight"]) @ np.asarray(params["mlp.down.weight"]).T
    zeroed = {**params, "mlp.down.weight": jnp.zeros_like(params["mlp.down.weight"])}
    rest, _ = BLOCK(decoder, zeroed, x, cache, START)
    np.testing.assert_allclose(np.asarray(rest) + down, y, atol=1e-4)


def test_wrong_names_are_listed(model):
    params = dict(model.layers[0])
    params["attention.q.weight"] = params.pop("attention.query.weight")
    x, cache = model.x(IDS), model.caches(batch=2, capacity=23)[0]
    with pytest.raises(
        InvalidInputError, match=r"block: .*missing attention\.query\.weight, unexpected attention\.q\."
    ):
        models.block(model.decoder, params, x, cache, START)
    if model.final:
        with pytest.raises(
            InvalidInputError, match=r"final: .*missing (norm|project_out)\..*unexpected none"
        ):
            models.final(model.decoder, {}, x)
    with pytest.raises(InvalidInputError, match=r"stem: .*unexpected extra"):
        models.stem(model.decoder, {**model.stem, "extra": START}, x, START)


def test_transposed_matrix_is_refused(model):
    params = {**model.layers[0], "mlp.up.weight": model.layers[0]["mlp.up.weight"].T}
    x, cache = model.x(IDS), model.caches(batch=2, capacity=23)[0]
    with pytest.raises(
        InvalidInputError, match=r"'mlp\.up\.weight'.*\(32, 48\).*\(48, 32\).*\(outputs, inputs\)"
    ):
        models.block(model.decoder, params, x, cache, START)
