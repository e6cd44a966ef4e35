"""Conversion as a whole: what is stored is what was read, in parts that the plan can count on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import bits_of, dtype_from_name
from endor_jax.conversion.estimate import estimate_config, estimate_source
from endor_jax.conversion.pipeline import survey_conversion
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import DestinationExistsError, InvalidInputError, NotFoundError, UnsupportedError
from endor_jax.prune.structure import dropped
from endor_jax.sources import open_source, write_safetensors
from endor_jax.sources.mapping import to_endor
from endor_jax.sources.source import TensorInfo
from tests.tiny_models import LLAMA, OPT, random_tensors, write_tiny

UNTIED = LLAMA | {"tie_word_embeddings": False, "num_hidden_layers": 2}


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits_of(got), bits_of(expected))


@pytest.mark.parametrize("values", ["auto", "raw", "packed", "packed:3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_read_back_has_every_bit(tmp_path, dtype, values):
    config = UNTIED if values == "auto" else LLAMA | {"num_hidden_layers": 1}
    endor.convert(write_tiny(tmp_path / "source", config, dtype=dtype), tmp_path / "dst", values=values)
    with endor.open(tmp_path / "dst") as checkpoint:
        for name, array in random_tensors(config, dtype=dtype).items():
            place = to_endor("llama", name)
            assert place is not None
            assert_same_bits(checkpoint.read_tensor(place.record, place.tensor), array)


def test_dtypes_may_be_mixed(tmp_path):
    tensors = random_tensors(UNTIED, dtype="bfloat16")
    tensors = {n: a.astype(np.float32) if "norm" in n else a for n, a in tensors.items()}
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(UNTIED).encode()}
    write_safetensors(tmp_path / "source", tensors.items(), infos=infos, files=files)
    conversion = endor.convert(tmp_path / "source", tmp_path / "dst")
    assert conversion.dense_bytes == sum(array.nbytes for array in tensors.values())
    with endor.open(tmp_path / "dst") as checkpoint:
        assert_same_bits(checkpoint.read_tensor("final", "norm.scale"), tensors["model.norm.weight"])
        assert_same_bits(checkpoint.read_tensor("head", "weight"), tensors["lm_head.weight"])


def test_pruned_rows_have_exact_counts(tmp_path):
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "dst", prune="magnitude", sparsity=0.3)
    with endor.open(tmp_path / "dst") as checkpoint:
        for record in checkpoint.manifest.records:
            for name, tensor in checkpoint.manifest.layout(record).tensors:
                array = checkpoint.read_tensor(record.name, name)
                if record.name.startswith("layers.") and array.ndim == 2:
                    kept = tensor.shape[1] - dropped(0.3, tensor.shape[1])
                    assert (np.count_nonzero(array, axis=1) == kept).all()
                    assert record.stats[name].nonzero == kept * tensor.shape[0]
                else:
                    assert np.count_nonzero(array) == array.size


@pytest.mark.parametrize("config", [LLAMA, UNTIED, OPT], ids=["llama", "untied", "opt"])
def test_equal_layers_have_one_signature_whatever_they_hold(tmp_path, config):
    # Layers of very different spread would choose different codecs, each for itself.
    tensors = {
        name: array * np.float32(1 + 50 * name.count("layers.1.")) * (array > -1)
        for name, array in random_tensors(config).items()
    }
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(config).encode()}
    write_safetensors(tmp_path / "source", tensors.items(), infos=infos, files=files)
    manifest = endor.convert(tmp_path / "source", tmp_path / "dst", dtype="bfloat16").manifest
    layers = [record for record in manifest.records if record.name.startswith("layers.")]
    assert len({record.signature for record in layers}) == 1
    assert len({part.buffer_bytes for record in layers for part in record.parts}) == 1


@pytest.mark.parametrize("values", ["auto", "raw", "packed"])
def test_vocabulary_matrices_are_cut_into_blocks_no_larger_than_a_layer(tmp_path, values):
    config = UNTIED | {"vocab_size": 4099}
    source = write_tiny(tmp_path / "source", config, dtype="bfloat16")
    manifest = endor.convert(source, tmp_path / "dst", values=values).manifest
    largest = max(p.length_bytes for r in manifest.records if r.name.startswith("layers.") for p in r.parts)
    for name in ("embedding", "head"):
        parts = manifest.record(name).parts
        assert len(parts) > 5
        # The last rows of a part are padding, sections are rounded up.
        assert max(part.length_bytes for part in parts) < 1.1 * largest
        dense = 2 * 4099 * config["hidden_size"]
        assert sum(part.length_bytes for part in parts) < 1.1 * dense


@pytest.mark.parametrize("settings", [{}, {"prune": "magnitude", "sparsity": 0.5, "dtype": "bfloat16"}])
def test_shards_change_nothing(tmp_path, settings):
    write_tiny(tmp_path / "one")
    write_tiny(tmp_path / "many", shard_bytes=40_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for name in ("one", "many"):
        endor.convert(tmp_path / name, tmp_path / f"{name}.endor", **settings)
    one, many = contents(tmp_path / "one.endor"), contents(tmp_path / "many.endor")
    manifests = [json.loads(files.pop("endor.json")) for files in (one, many)]
    assert one == many
    for manifest in manifests:
        manifest["made"].pop("source")
        manifest.pop("digest")
    assert manifests[0] == manifests[1]


def test_the_source_is_only_read(tmp_path):
    source = write_tiny(tmp_path / "source", tokenizer=True)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()}
    endor.convert(source, tmp_path / "dst", dtype="bfloat16")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()} == before


def test_what_was_done_is_told_and_recorded(tmp_path):
    calls = []
    tensors = random_tensors(LLAMA)
    tensors["model.layers.1.mlp.up_proj.weight"][:, :3] = -0.0
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(LLAMA).encode()}
    write_safetensors(tmp_path / "source", tensors.items(), infos=infos, files=files)
    conversion = endor.convert(
        tmp_path / "source", tmp_path / "dst", dtype="float16", progress=lambda *call: calls.append(call)
    )
    assert conversion.negative_zeros == 3 * 96
    assert conversion.manifest.made["negative_zeros"] == 3 * 96
    assert conversion.manifest.made["settings"]["dtype"] == "float16"
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["dtype"] == "float16"
    files = [f for f in (tmp_path / "dst" / "parts").rglob("*") if f.is_file()]
    assert conversion.stored_bytes <= sum(f.stat().st_size for f in files) < 1.2 * conversion.stored_bytes
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == ("done", conversion.dense_bytes, conversion.dense_bytes)


def unknown_key(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"logit_softcapping": 30.0}))


def unknown_tensor(source: Path) -> None:
    tensors = random_tensors(LLAMA) | {"model.layers.0.self_attn.lora_A.weight": np.ones((2, 2), np.float32)}
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    (source / "model.safetensors").unlink()
    write_safetensors(source, tensors.items(), infos=infos)


def of_dtype(dtype: str, name: str) -> Callable[[Path], None]:
    def rewrite(source: Path) -> None:
        tensors = random_tensors(LLAMA)
        tensors[name] = tensors[name].astype(dtype)
        infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
        (source / "model.safetensors").unlink()
        write_safetensors(source, tensors.items(), infos=infos)

    return rewrite


EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"


def missing_shard(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))


@pytest.mark.parametrize(
    ("damage", "settings", "error", "message"),
    [
        (unknown_key, {}, UnsupportedError, "logit_softcapping"),
        (unknown_tensor, {}, InvalidInputError, r"self_attn\.lora_A"),
        (missing_shard, {}, InvalidInputError, r"no tensor model\.layers\.4\."),
        (of_dtype("float64", EMBEDDING), {}, UnsupportedError, r"embed.* float64, .*give --dtype float32"),
        (
            of_dtype("int32", EMBEDDING),
            {"dtype": "float32"},
            UnsupportedError,
            r"embed.* int32, .*convert",
        ),
        (
            of_dtype("int8", UP),
            {},
            UnsupportedError,
            r"layers\.1\.mlp\.up.* dtype int8, expected bf",
        ),
        (lambda source: None, {"values": "packed:5", "dtype": "float16"}, InvalidInputError, "packed:5"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, damage, settings, error, message):
    source = write_tiny(tmp_path / "source")
    damage(source)
    with pytest.raises(error, match=message):
        endor.convert(source, tmp_path / "dst", **settings)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("name", [EMBEDDING, UP])
def test_float64_is_rounded_where_a_dtype_is_given(tmp_path, name):
    source = write_tiny(tmp_path / "source")
    expected = contents(endor.convert(source, tmp_path / "single", dtype="float32").path / "parts")
    of_dtype("float64", name)(source)
    converted = endor.convert(source, tmp_path / "double", dtype="float32")
    assert contents(converted.path / "parts") == expected


def test_overflow_leaves_no_checkpoint(tmp_path):
    tensors = random_tensors(LLAMA)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = 1e30
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(LLAMA).encode()}
    write_safetensors(tmp_path / "source", tensors.items(), infos=infos, files=files)
    with pytest.raises(InvalidInputError, match=r"model\.layers\.3\.mlp\.up_proj\.weight"):
        endor.convert(tmp_path / "source", tmp_path / "dst", dtype="float16")
    with pytest.raises(NotFoundError):
        endor.open(tmp_path / "dst")


def test_a_destination_in_use_is_refused(tmp_path):
    source = write_tiny(tmp_path / "source")
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "letter.txt").write_text("keep me")
    with pytest.raises(DestinationExistsError, match="not empty"):
        endor.convert(source, tmp_path / "dst")
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["letter.txt"]


def test_unknown_settings_and_missing_sources(tmp_path):
    with pytest.raises(TypeError, match="sparseness"):
        endor.convert(tmp_path, tmp_path / "dst", sparseness=0.5)
    with pytest.raises(NotFoundError, match="nowhere"):
        endor.convert(tmp_path / "nowhere", tmp_path / "dst")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "prune": "magnitude", "sparsity": 0.5},
        {"values": "raw"},
    ],
    ids=str,
)
def test_a_survey_expects_what_is_then_written(tmp_path, settings):
    source = write_tiny(tmp_path / "source", LLAMA | {"vocab_size": 3000})
    expected = survey_conversion(source, tmp_path / "dry", settings=ConvertSettings(**settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    conversion = endor.convert(source, tmp_path / "dst", **settings)
    assert expected.dense_bytes == conversion.dense_bytes
    assert [r.name for r in expected.expected.records] == [r.name for r in conversion.manifest.records]
    assert expected.expected.stored_bytes == pytest.approx(conversion.stored_bytes, rel=0.1)


def test_an_estimate_needs_a_float_format_and_a_sparsity():
    with pytest.raises(InvalidInputError, match=r"dtype: got 'int8'"):
        estimate_config(LLAMA, dtype="int8", sparsity=0.0)
    with pytest.raises(InvalidInputError, match=r"sparsity: got 1.5"):
        estimate_config(LLAMA, dtype="bfloat16", sparsity=1.5)


@pytest.mark.parametrize("config", [LLAMA, UNTIED, OPT], ids=["llama", "untied", "opt"])
def test_estimates_from_config_and_from_source_agree(tmp_path, config):
    source = write_tiny(tmp_path / "source", config, dtype="bfloat16")
    with open_source(source) as opened:
        of_source = estimate_source(opened, dtype=None, sparsity=0.5)
        cast = estimate_source(opened, dtype="float32", sparsity=0.5)
    of_config = estimate_config(config, dtype="bfloat16", sparsity=0.5)
    lengths = [{r.name: r.stored_bytes for r in manifest.records} for manifest in (of_source, of_config)]
    assert lengths[0] == lengths[1]
    assert cast.stored_bytes > 1.5 * of_source.stored_bytes
    assert {t.dtype for r in cast.records for _, t in cast.layout(r).tensors} == {"float32"}


def test_a_record_of_a_dtype_that_cannot_be_packed_is_cut_too(tmp_path):
    # float16 has five exponent bits: packing gains little, "auto" may well take raw fields without bitmap.
    config = LLAMA | {"vocab_size": 2048}
    random = np.random.default_rng(0)
    tensors = random_tensors(config, dtype="float16")
    wild = random.integers(0, 2**16, tensors["model.embed_tokens.weight"].shape, np.uint16)
    tensors["model.embed_tokens.weight"] = wild.view(dtype_from_name("float16"))
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(config).encode()}
    write_safetensors(tmp_path / "source", tensors.items(), infos=infos, files=files)
    manifest = endor.convert(tmp_path / "source", tmp_path / "dst", keep_negative_zero=True).manifest
    record = manifest.record("embedding")
    assert len(record.parts) > 1
    assert record.stored_bytes < 1.1 * wild.nbytes
    with endor.open(tmp_path / "dst") as checkpoint:
        assert_same_bits(checkpoint.read_tensor("embedding", "weight"), tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"vocab_size": 100}, {"intermediate_size": 64}])
def test_weights_of_another_config_are_refused(tmp_path, change):
    source = write_tiny(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InvalidInputError, match=r"got shape .*, by config\.json"):
        endor.convert(source, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_destination_is_checked_before_anything_is_read(tmp_path):
    source = write_tiny(tmp_path / "source")
    (tmp_path / "dst").write_text("mine")
    said: list[str] = []
    with pytest.raises(DestinationExistsError):
        endor.convert(source, tmp_path / "dst", progress=lambda what, done, total: said.append(what))
    with pytest.raises(DestinationExistsError):
        survey_conversion(source, tmp_path / "dst", settings=ConvertSettings())
    assert said == []
