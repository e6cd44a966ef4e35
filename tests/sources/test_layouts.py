"""Every layout of the same weights gives the same checkpoint, byte for byte; of several, one is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError, NotFoundError, ResumeError
from endor_jax.sources import open_source
from tests.conversion.interrupting import contents
from tests.sources.layouts import LAYOUTS, in_layout
from tests.tiny_models import LLAMA, OPT, random_tensors, write_tiny

SETTINGS = {"prune": "magnitude", "sparsity": 0.5}
MODELS = {
    "opt": (OPT | {"num_hidden_layers": 2}, "float16"),
    "llama": (LLAMA | {"num_hidden_layers": 2, "tie_word_embeddings": False}, "bfloat16"),
}


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def dense(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, dtype = MODELS[family]
    return write_tiny(tmp_path_factory.mktemp(family) / "dense", config, dtype=dtype, tokenizer=True)


@pytest.fixture(scope="module")
def converted(dense: Path) -> dict[str, bytes]:
    """What the conversion of the safetensors wrote."""
    endor.convert(dense, dense.parent / "converted", **SETTINGS)
    return without_origin(dense.parent / "converted")


def without_origin(path: Path) -> dict[str, bytes]:
    """All files, the manifest without the path it was made from and the digest of itself."""
    found = contents(path)
    manifest = json.loads(found["endor.json"])
    del manifest["made"]["source"], manifest["digest"]
    return found | {"endor.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_those_of_the_safetensors(family: str, dense: Path, layout: str, tmp_path: Path) -> None:
    config, dtype = MODELS[family]
    expected = random_tensors(config, dtype=dtype)
    source = open_source(in_layout(tmp_path / "source", dense, expected, layout))
    assert source.tensors.keys() == expected.keys()
    for name, array in expected.items():
        got = source.read(name)
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
        assert got.flags.c_contiguous
        assert got.flags.owndata or got.base.flags.owndata
    assert source.files() == open_source(dense).files()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversion_writes_the_same_bytes(
    family: str, dense: Path, converted: dict[str, bytes], layout: str, tmp_path: Path
) -> None:
    config, dtype = MODELS[family]
    source = in_layout(tmp_path / "source", dense, random_tensors(config, dtype=dtype), layout)
    endor.convert(source, tmp_path / "converted", **SETTINGS)
    assert without_origin(tmp_path / "converted") == converted


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "flax_model.msgpack"])
def test_what_one_layout_began_another_finishes(
    family: str, dense: Path, converted: dict[str, bytes], layout: str, tmp_path: Path
) -> None:
    """And with other weights it is refused by name: the bytes of every tensor are compared."""
    config, dtype = MODELS[family]
    began = in_layout(tmp_path / "began", dense, random_tensors(config, dtype=dtype), layout)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "encoding layers.1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endor.convert(began, tmp_path / "converted", progress=interrupt, **SETTINGS)
    assert not (tmp_path / "converted" / "endor.json").exists()
    other = in_layout(tmp_path / "other", dense, random_tensors(config, dtype=dtype, seed=1), layout)
    shutil.copytree(tmp_path / "converted", tmp_path / "copy")
    with pytest.raises(ResumeError, match="other bytes than when"):
        endor.convert(other, tmp_path / "copy", **SETTINGS)
    endor.convert(dense, tmp_path / "converted", **SETTINGS)
    assert without_origin(tmp_path / "converted") == converted


def test_one_layout_is_read_and_the_others_left_alone(tmp_path: Path) -> None:
    dense = write_tiny(tmp_path / "dense", OPT)
    tensors = random_tensors(OPT)
    every = tmp_path / "every"
    for seed, file in enumerate(("flax_model.msgpack", "pytorch_model.bin"), 1):
        made = in_layout(tmp_path / file, dense, random_tensors(OPT, seed=seed), file)
        shutil.copytree(made, every, dirs_exist_ok=True)
        name = "model.decoder.embed_tokens.weight"
        assert np.array_equal(open_source(every).read(name), random_tensors(OPT, seed=seed)[name])
    shutil.copytree(dense, every, dirs_exist_ok=True)
    assert np.array_equal(open_source(every).read(name), tensors[name])
    # Half of a layout that comes first is an error, whatever else is there.
    (every / "model.safetensors").rename(every / "model-00001-of-00002.safetensors")
    index = {"weight_map": {name: "model-00002-of-00002.safetensors"}}
    (every / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFoundError, match="00002-of-00002"):
        open_source(every)


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "flax_model-00001-of-00002.msgpack",
        "tokenizer.json",
        "config.json",
    ],
)
def test_git_lfs_pointers_are_called_by_their_name(tmp_path: Path, file: str) -> None:
    write_tiny(tmp_path / "model", OPT)
    if not file.endswith(".json"):
        (tmp_path / "model" / "model.safetensors").unlink()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 250540281\n"
    (tmp_path / "model" / file).write_text(pointer)
    with pytest.raises(InvalidInputError, match=rf"{file}: got a Git LFS pointer.*git lfs pull"):
        open_source(tmp_path / "model").files()


def test_a_pointer_that_the_index_does_not_name_is_nobodys_business(tmp_path: Path) -> None:
    """A clone of which only the shards were fetched, beside a consolidated file."""
    model = write_tiny(tmp_path / "model", OPT)
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(random_tensors(OPT), "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 250540281\n"
    (model / "consolidated.safetensors").write_text(pointer)
    with open_source(model) as opened:
        assert len(opened.tensors) == len(random_tensors(OPT))
    (model / "model-00001-of-00001.safetensors").write_text(pointer)
    with pytest.raises(InvalidInputError, match=r"00001\.safetensors: got a Git LFS pointer"):
        open_source(model)


@pytest.mark.parametrize("prefix", ["", "decoder."])
def test_opt_with_the_prefixes_that_repositories_have(tmp_path: Path, prefix: str) -> None:
    """Base models are saved without "model.", and some of Facebook's have "decoder." alone."""
    dense = write_tiny(tmp_path / "dense", OPT)
    tensors = {name.replace("model.decoder.", prefix): array for name, array in random_tensors(OPT).items()}
    source = in_layout(tmp_path / "source", dense, tensors, "pytorch_model.bin")
    endor.convert(dense, tmp_path / "a")
    endor.convert(source, tmp_path / "b")
    assert without_origin(tmp_path / "a") == without_origin(tmp_path / "b")


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["OPT", "Llama"])
def test_state_dicts_that_torch_saved_of_transformers_models(tmp_path: Path, kind: str) -> None:
    """With a tied head, which is the same storage twice, against the safetensors that transformers writes."""
    torch = pytest.importorskip("torch")
    from tests.end_to_end.transformers_models import reference, save_random

    config = {"OPT": OPT, "Llama": LLAMA}[kind] | {"num_hidden_layers": 2, "tie_word_embeddings": True}
    config = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    dense = save_random(kind, config, tmp_path / "dense")
    state = reference(dense).state_dict()
    assert "lm_head.weight" in state
    source = tmp_path / "source"
    shutil.copytree(dense, source, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(state, source / "pytorch_model.bin")
    endor.convert(dense, tmp_path / "a", **SETTINGS)
    endor.convert(source, tmp_path / "b", **SETTINGS)
    assert without_origin(tmp_path / "a") == without_origin(tmp_path / "b")
