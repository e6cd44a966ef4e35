"""A manifest that somebody put together, with right digests, is still checked against its own config."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError
from endor_jax.store.manifest import read_manifest, write_manifest
from tests.generate.budgets import smallest


@pytest.mark.parametrize("record", ["embedding", "layers.3", "final"])
def test_a_record_that_is_not_there(llama, tmp_path, record):
    shutil.copytree(llama, tmp_path / "x")
    manifest = read_manifest(tmp_path / "x")
    renamed = tuple(
        replace(stored, name="other") if stored.name == record else stored for stored in manifest.records
    )
    write_manifest(tmp_path / "x", replace(manifest, records=renamed))
    with pytest.raises(CorruptCheckpointError, match=f"record {record}: got no such record"):
        endor.load(tmp_path / "x")


def test_a_config_of_other_shapes(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "x")
    manifest = read_manifest(tmp_path / "x")
    assert manifest.model is not None
    write_manifest(tmp_path / "x", replace(manifest, model=manifest.model | {"intermediate_size": 128}))
    with pytest.raises(CorruptCheckpointError, match=r"record layers\.0: got tensors .*\(96, 64\)"):
        endor.load(tmp_path / "x")


@pytest.mark.parametrize("reader", ["preadv", "direct", "mmap", "tensorstore"])
def test_every_reader_gives_the_same_bits(llama, reader):
    with endor.load(llama, context=128) as model:
        expected = model.logits([[1, 2, 3]])
    device, host = smallest(llama, context=128)
    with endor.load(llama, context=128, device_memory=device, host_memory=host, reader=reader) as model:
        assert model.reader == reader
        for _ in range(3):
            assert model.logits([[1, 2, 3]]).tobytes() == expected.tobytes()
