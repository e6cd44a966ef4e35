"""One object store for all tests here, with a small checkpoint in it; its twin on the local disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

import endor_jax as endor
from endor_jax.store import part
from endor_jax.store.remote import cache, driver, objects
from tests.generate.budgets import smallest
from tests.store.remote.object_server import BUCKET, CHUNK, Proxy, moto_server, upload, use
from tests.tiny_models import write_tiny


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small chunks, blocks and requests, hurried retries, and a cache of the test's own."""
    monkeypatch.setattr(part, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(objects, "REQUEST_BYTES", 15000)
    monkeypatch.setattr(driver, "RETRIES", {"max_retries": 3, "initial_delay": "1ms", "max_delay": "5ms"})
    monkeypatch.setattr(cache, "LEAST_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model in a directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "CHUNK_BYTES", CHUNK)
        directory = tmp_path_factory.mktemp("local")
        source = write_tiny(directory / "source", tokenizer=True)
        endor.convert(source, directory / "model", dtype="bfloat16", prune="magnitude", sparsity=0.5)
        return directory / "model"


@pytest.fixture(scope="session")
def uploaded(server: int, local: Path) -> str:
    """The same in the store; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, server)
        upload(local, f"s3://{BUCKET}/session/model")
    return f"s3://{BUCKET}/session/model"


@pytest.fixture(autouse=True)
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Through which this process reaches the store."""
    between = Proxy(server)
    use(monkeypatch, between.port)
    yield between
    between.close()


@pytest.fixture
def mine(uploaded: str, local: Path, request: pytest.FixtureRequest) -> str:
    """A copy that a test may change."""
    url = f"s3://{BUCKET}/tests/{request.node.name}".replace("[", "-").replace("]", "")
    upload(local, url)
    return url


@pytest.fixture(scope="session")
def tight(local: Path) -> dict[str, int]:
    """The least budgets: layers are streamed, on every pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "CHUNK_BYTES", CHUNK)
        device, host = smallest(local, depth=1)
    return {"device_memory": device, "host_memory": host, "depth": 1}


@pytest.fixture(scope="session")
def expected(local: Path) -> list[int]:
    """The tokens that the local checkpoint gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "CHUNK_BYTES", CHUNK)
        with endor.load(local) as model:
            return copy.copy(model.complete("Once", max_tokens=6).token_ids)
