"""The sparse-bitmask layout: against files of compressed-tensors 0.14.0, by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources import Source, TensorInfo, open_source
from endor_jax.sources.sparse_bitmask_config import storage_of, with_storage, without_storage
from endor_jax.sources.sparse_bitmask_layout import check_infos, compress, compressed_infos, expand

GOLDEN = Path(__file__).parent / "golden" / "sparse_bitmask"
MODULE = "model.layers.0.self_attn.q_proj"
BITMASK = {"quantization_config": {"sparsity_config": {"format": "sparse-bitmask"}}}


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def test_golden_files_read_as_the_dense_tensors_they_were_made_from() -> None:
    with open_source(GOLDEN / "compressed") as source, open_source(GOLDEN / "dense") as dense:
        assert isinstance(source, Source)
        assert dict(source.tensors) == dict(dense.tensors)
        assert source.config == dense.config
        for name in dense.tensors:
            assert bits(source.read(name)) == bits(dense.read(name)), name
        assert json.loads(source.files()["config.json"]) == dense.config
        with pytest.raises(InvalidInputError, match="one of its `tensors`"):
            source.read(f"{MODULE}.bitmask")


def test_compressing_gives_the_golden_tensors() -> None:
    stored = load_file(GOLDEN / "compressed" / "model.safetensors")
    with open_source(GOLDEN / "dense") as dense:
        for name in dense.tensors:
            module = name.removesuffix(".weight")
            if f"{module}.bitmask" in stored:
                for suffix, piece in compress(dense.read(name)).items():
                    expected = stored[f"{module}.{suffix}"]
                    assert (piece.dtype, piece.shape) == (expected.dtype, expected.shape), (name, suffix)
                    assert bits(piece) == bits(expected), (name, suffix)


def test_the_layout_by_hand() -> None:
    matrix = np.zeros((3, 10), np.float32)
    matrix[0, [0, 3, 9]] = 1, 2, 3
    matrix[2, 8] = 4
    pieces = compress(matrix)
    assert pieces["shape"].tolist() == [3, 10]
    assert pieces["compressed"].tolist() == [1, 2, 3, 4]
    assert pieces["bitmask"].tolist() == [[0b1001, 0b10], [0, 0], [0, 0b1]]
    assert pieces["row_offsets"].tolist() == [0, 3, 3]


ARRAYS = st.sampled_from([np.uint16, np.uint32]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
)


@settings(deadline=None)
@given(ARRAYS, st.sampled_from([ml_dtypes.bfloat16, np.float16]))
def test_every_bit_pattern_comes_back(raw: np.ndarray, half: type) -> None:
    """Negative zeros too, which the library would have lost."""
    matrix = raw.view(half if raw.dtype == np.uint16 else np.float32)
    pieces = compress(matrix)
    infos = compressed_infos(matrix.shape, matrix.dtype.name, nonzero=int(np.count_nonzero(raw)))
    assert infos == {suffix: TensorInfo(piece.shape, piece.dtype.name) for suffix, piece in pieces.items()}
    shape = (matrix.shape[0], matrix.shape[1])
    check_infos("W", shape, infos)
    assert bits(expand("W", shape, pieces)) == bits(matrix)


def write(directory: Path, tensors: dict[str, np.ndarray], config: dict | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} | (config or BITMASK)))
    return directory


@pytest.fixture
def pieces() -> dict[str, np.ndarray]:
    matrix = np.arange(30, dtype=np.float32).reshape(3, 10) % 3
    return {f"{MODULE}.{suffix}": piece for suffix, piece in compress(matrix).items()}


def test_names_of_old_releases_are_read_too(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    old = {name.replace("q_proj.", "q_proj.weight."): piece for name, piece in pieces.items()}
    config = {"compression_config": {"sparsity_config": {"format": "sparse-bitmask"}}}
    with open_source(write(tmp_path, old, config)) as source:
        assert list(source.tensors) == [f"{MODULE}.weight"]
        assert source.read(f"{MODULE}.weight")[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
        assert source.config == {"model_type": "llama"}


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        ("shape", np.array([3, 11, 1]), r"\.shape: got TensorInfo.*expected int64 \(2,\)"),
        ("shape", np.array([3.0, 10.0]), r"\.shape: .*expected int64 \(2,\)"),
        ("shape", np.array([-3, 10]), r"\.shape: got \[-3, 10\]"),
        ("shape", np.array([2**62, 2**62]), r"\.bitmask: got uint8 \(3, 2\)"),
        ("shape", np.array([3, 17]), r"\.bitmask: got uint8 \(3, 2\), expected uint8 \(3, 3\)"),
        ("shape", np.array([1, 2]), r"\.compressed: got shape \(20,\), expected at most 2 values"),
        ("bitmask", np.zeros((3, 2), np.int8), r"\.bitmask: got int8"),
        ("row_offsets", np.array([0, 6, 12], np.int32), r"\.row_offsets: got int32"),
        ("row_offsets", np.array([0, 6]), r"\.row_offsets: got int64 \(2,\)"),
        ("compressed", np.zeros((2, 10), np.float32), r"\.compressed: got shape \(2, 10\)"),
    ],
)
def test_pieces_that_cannot_belong_together_are_refused_on_opening(
    tmp_path: Path, pieces: dict[str, np.ndarray], suffix: str, value: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        open_source(write(tmp_path, pieces | {f"{MODULE}.{suffix}": value}))


@pytest.mark.parametrize(
    ("suffix", "where", "value", "message"),
    [
        ("bitmask", (1, 1), 0b100, "bits past the last column"),
        ("bitmask", (0, 0), 0xFF, r"\.compressed: got 20 values, expected 23"),
        ("row_offsets", (1,), 5, r"\.row_offsets: got 5 for row 1, expected 6"),
        ("row_offsets", (0,), -1, r"\.row_offsets: got -1 for row 0, expected 0"),
    ],
)
def test_pieces_that_contradict_each_other_are_refused_on_reading(
    tmp_path: Path,
    pieces: dict[str, np.ndarray],
    suffix: str,
    where: tuple[int, ...],
    value: int,
    message: str,
) -> None:
    pieces[f"{MODULE}.{suffix}"][where] = value
    source = open_source(write(tmp_path, pieces))
    with pytest.raises(InvalidInputError, match=message):
        source.read(f"{MODULE}.weight")


def test_missing_and_doubled_pieces_are_refused(tmp_path: Path, pieces: dict[str, np.ndarray]) -> None:
    missing = {name: piece for name, piece in pieces.items() if not name.endswith("row_offsets")}
    with pytest.raises(InvalidInputError, match=r"no tensor \.row_offsets"):
        open_source(write(tmp_path, missing))
    dense = {f"{MODULE}.weight": np.ones((3, 10), np.float32)}
    with pytest.raises(InvalidInputError, match="it twice"):
        open_source(write(tmp_path, pieces | dense))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_damage_is_refused_or_read_as_a_matrix_of_that_shape(tmp_path_factory, data: st.DataObject) -> None:
    """Any byte of the file may be another one."""
    damaged = bytearray((GOLDEN / "compressed" / "model.safetensors").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=3)):
        damaged[at] = data.draw(st.integers(0, 255))
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "model.safetensors").write_bytes(damaged)
    (directory / "config.json").write_text((GOLDEN / "compressed" / "config.json").read_text())
    try:
        with open_source(directory) as source:
            for name, info in source.tensors.items():
                array = source.read(name)
                assert (array.shape, array.dtype.name) == (info.shape, info.dtype)
    except (InvalidInputError, UnsupportedError):
        pass


QUANTISED = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}, "format": "pack-quantized"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (QUANTISED, "weights quantised as 'pack-quantized'"),
        (QUANTISED | {"sparsity_config": {"format": "sparse-bitmask"}}, "quantised as 'pack-quantized'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "format 'sparse-24-bitmask'"),
        ({"format": "marlin-24"}, "format 'marlin-24'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "'transform_config'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "'kv_cache_scheme'"),
        ({"bits": 4}, "'bits': 4"),
        ({"sparsity_config": {"format": "sparse-bitmask", "blocks": 3}}, "'blocks'"),
    ],
)
def test_what_changes_the_weights_is_refused_by_name(tmp_path: Path, value: dict, message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"quantization_config.*{message}"):
        open_source(write(tmp_path, {"w": np.ones(3, np.float32)}, {"quantization_config": value}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": 4}, "got 4, expected an object"),
        ({"quantization_config": {"sparsity_config": [1]}}, r"got \[1\], expected an object"),
        ({"quantization_config": {}, "compression_config": {}}, "expected one of them"),
    ],
)
def test_values_of_another_type_are_refused(config: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        storage_of(config)


def test_dense_files_full_of_zeros_are_read_without_what_is_said_of_them(tmp_path: Path) -> None:
    """How pruned checkpoints are published since: the key says "dense", or nothing that is quantised."""
    stated = {"format": "dense", "global_sparsity": 0.5, "targets": ["Linear"], "ignore": []}
    compression = {
        "quant_method": "compressed-tensors",
        "version": "0.9.0",
        "format": "dense",
        "config_groups": {},
        "kv_cache_scheme": None,
        "sparsity_config": stated,
    }
    with open_source(
        write(tmp_path, {"w": np.zeros(3, np.float32)}, {"quantization_config": compression})
    ) as source:
        assert source.config == {"model_type": "llama"}
        assert source.tensors == {"w": TensorInfo((3,), "float32")}


def test_config_without_what_was_put_in_is_the_config() -> None:
    config = {"model_type": "llama", "hidden_size": 12}
    stored = with_storage(config, ignore=["lm_head"], sparsity=0.5)
    assert storage_of(stored) == "sparse-bitmask"
    assert without_storage(stored) == config
    assert storage_of(config | {"quantization_config": None}) is None
