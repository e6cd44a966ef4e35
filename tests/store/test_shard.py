"""Plain writes and TensorStore give the same file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.arrays import round_up
from endor_jax.store.shard import crc32c, write_shard


def by_tensorstore(directory: Path, data: np.ndarray, chunk: int) -> bytes:
    """What TensorStore makes of the same bytes: the slow path that the fast one must equal."""
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shard = {"chunk_shape": [chunk], "codecs": [{"name": "bytes"}], "index_codecs": index}
    shape = round_up(data.shape[0], chunk)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory}/"},
        "create": True,
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [data.shape[0]],
            "data_type": "uint8",
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shape]}},
            "codecs": [
                {"name": "sharding_indexed", "configuration": shard | {"index_location": "end"}},
            ],
        },
    }
    ts.open(spec).result().write(data).result()
    return (directory / "c/0").read_bytes()


@given(
    length=st.integers(1, 40_000) | st.sampled_from([4095, 4096, 4097, 12288]), pages=st.sampled_from([1, 2])
)
@settings(max_examples=30)
def test_the_file_is_that_of_tensorstore(length: int, pages: int) -> None:
    data = np.frombuffer(np.random.default_rng(length).bytes(length), np.uint8).copy()
    data[: length // 3] = 0  # chunks of zeros are stored like others
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_shard(directory / "ours/c/0", data, 4096 * pages)
        assert (directory / "ours/c/0").read_bytes() == by_tensorstore(directory / "its", data, 4096 * pages)
        assert [path.name for path in (directory / "ours/c").iterdir()] == ["0"]


def test_crc32c_is_the_one_of_the_rfc() -> None:
    # RFC 3720, appendix B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_what_refuses_is_raised(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where a directory should be")
    with pytest.raises(FileExistsError):
        write_shard(tmp_path / "c/0", np.zeros(5, np.uint8), 4096)
