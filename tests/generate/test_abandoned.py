"""Generation that is left midway, in whatever way: nothing stays behind, and the model can be used again."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError, StreamError
from endor_jax.generate.continuation import wishes_for
from endor_jax.store.manifest import read_manifest
from endor_jax.store.part import DATA_FILE
from tests.generate.budgets import smallest

pytestmark = pytest.mark.usefixtures("compiled_quickly")
PROMPT = [5, 6, 7, 8]


def mapped(path: Path) -> int:
    """Files of the checkpoint that are mapped into this process."""
    return Path("/proc/self/maps").read_text().count(str(path.resolve()))


def opened(path: Path) -> int:
    """Its files that are open."""
    links = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{each}"))
    return sum(link.startswith(str(path.resolve())) for link in links)


def readers() -> int:
    return sum(thread.name.startswith("endor-") for thread in threading.enumerate())


def held(path: Path) -> dict[str, int]:
    """What a model holds, when what is garbage has gone."""
    for _ in range(2):
        gc.collect()
    until = time.monotonic() + 10
    while readers() and time.monotonic() < until:  # of a stream that was dropped they end soon
        time.sleep(0.001)
    return {
        "arrays": len(jax.live_arrays()),
        "threads": readers(),
        "open files": opened(path),
        "mapped files": mapped(path),
    }


def load(path: Path, reader: str, batch: int = 1) -> endor.Model:
    """A model that streams from disk."""
    device, host = smallest(path, context=64, batch=batch)
    model = endor.load(
        path, device_memory=device, host_memory=host, context=64, reader=reader, batch=batch, depth=2
    )
    assert model.plan.count("disk") > 2
    return model


def generate(model: endor.Model) -> Iterator[Any]:
    return model.generate(PROMPT, max_tokens=8)


def session(model: endor.Model) -> Iterator[Any]:
    return model.session().generate(PROMPT, wishes_for(8, None, ()))


def batch(model: endor.Model) -> Iterator[Any]:
    return model.complete_batch([PROMPT] * 5, max_tokens=3)


def leave(tokens: Iterator[Any]) -> None:
    for _ in tokens:
        break


def raise_midway(tokens: Iterator[Any]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for number, _ in enumerate(tokens):
            if number == 1:
                raise ZeroDivisionError


def throw_into(tokens: Any) -> None:
    next(tokens)
    with pytest.raises(KeyboardInterrupt):
        tokens.throw(KeyboardInterrupt)


def never_begin(tokens: Iterator[Any]) -> None:
    pass


begun = pytest.mark.parametrize("begin", [generate, session, batch])
cases = pytest.mark.parametrize(
    ("begin", "way", "reader"),
    [
        (generate, leave, "preadv"),
        (generate, never_begin, "preadv"),
        (session, raise_midway, "preadv"),
        (batch, throw_into, "preadv"),
        (generate, leave, "mmap"),
    ],
)


@pytest.fixture(autouse=True, scope="module")
def garbage_of_others() -> Iterator[None]:
    """Is not looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@cases
def test_model_that_was_left_midway_goes_on_and_frees_everything(
    llama: Path, begin: Callable[..., Iterator[Any]], way: Callable[[Any], None], reader: str
) -> None:
    before = held(llama)
    with load(llama, reader, batch=2) as model:
        whole = [token.id for token in generate(model)]
        gc.collect()
        alive = len(jax.live_arrays())
        way(begin(model))
        gc.collect()
        assert len(jax.live_arrays()) <= alive  # caches and activations of what was left
        assert [token.id for token in generate(model)] == whole
    del model
    assert held(llama) == before


@cases
def test_model_that_is_dropped_without_close_frees_everything(
    llama: Path, begin: Callable[..., Iterator[Any]], way: Callable[[Any], None], reader: str
) -> None:
    before = held(llama)
    model = load(llama, reader, batch=2)
    way(begin(model))
    del model
    assert held(llama) == before


@begun
def test_generation_outlives_the_name_of_its_model_and_frees_everything_when_it_goes(
    llama: Path, begin: Callable[..., Iterator[Any]]
) -> None:
    before = held(llama)
    tokens = begin(load(llama, "preadv", batch=2))
    next(tokens)
    next(tokens)
    del tokens
    assert held(llama) == before


@begun
def test_generation_of_a_closed_model_is_refused(llama: Path, begin: Callable[..., Iterator[Any]]) -> None:
    before = held(llama)
    with load(llama, "preadv", batch=2) as model:
        tokens = begin(model)
        next(tokens)
    with pytest.raises(StreamError, match="a call after close"):
        list(tokens)
    del tokens, model
    assert held(llama) == before


@begun
def test_file_cut_off_midway_is_named_with_its_layer_and_frees_everything(
    llama: Path, tmp_path: Path, begin: Callable[..., Iterator[Any]]
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(llama, path)
    before = held(path)
    model = load(path, "preadv", batch=2)
    read = {model.plan.demands[i].name for i in model.plan.read}
    stored = next(record for record in read_manifest(path).records if record.name in read)
    record, directory = stored.name, path / stored.parts[0].path
    file = directory / DATA_FILE
    whole = file.read_bytes()
    tokens = begin(model)
    next(tokens)
    os.truncate(file, 4096)
    with pytest.raises(CorruptCheckpointError, match=rf"^record {record}, part {directory}: got 4,096 bytes"):
        list(tokens)
    with pytest.raises(StreamError, match="a call after CorruptCheckpointError, which closed it"):
        list(begin(model))
    model.close()
    del model, tokens
    assert held(path) == before
    file.write_bytes(whole)
    with load(path, "preadv", batch=2) as repaired:
        assert list(begin(repaired))
