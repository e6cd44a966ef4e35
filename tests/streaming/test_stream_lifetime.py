"""A stream that is misused, fails, is dropped or outlives its process: errors, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from layer_stacks import apply, device_budget, host_budget, inputs, stack

import endor_jax as endor
from endor_jax.errors import CorruptCheckpointError, DoesNotFitError, InvalidInputError, StreamError

COUNT = 8
LAYERS = stack(COUNT)
PLENTY = 2**40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "x.endor"
    endor.save(path, LAYERS)
    return path


def test_wrong_number_of_states(path: Path) -> None:
    with endor.stream(apply, path, device_memory=PLENTY, host_memory=0) as run:
        with pytest.raises(InvalidInputError, match=r"stream: got 5 states, expected 8, one per layer"):
            run(inputs(), [0.0] * 5)
        run(inputs())  # nothing is broken by it


def test_use_after_close(path: Path) -> None:
    run = endor.stream(apply, path, device_memory=device_budget(path, 0), host_memory=PLENTY)
    run.close()
    run.close()
    with pytest.raises(StreamError, match=r"stream: got a call after close\(\)"):
        run(inputs())


def test_error_in_a_layer_closes_the_stream(path: Path) -> None:
    def layer(params: Any, x: Any, state: Any) -> Any:
        raise ZeroDivisionError("in the layer")

    run = endor.stream(layer, path, device_memory=device_budget(path, 0), host_memory=host_budget(path, 6))
    with pytest.raises(ZeroDivisionError):
        run(inputs())
    with pytest.raises(StreamError):
        run(inputs())


@pytest.mark.parametrize("buffers", [6, 99])
def test_damaged_part(tmp_path: Path, buffers: int) -> None:
    endor.save(tmp_path / "x", LAYERS)
    device, host = device_budget(tmp_path / "x", buffers - 6), host_budget(tmp_path / "x", buffers)
    file = tmp_path / "x/parts/layers.3.0/c/0"
    data = bytearray(file.read_bytes())
    data[999] ^= 1
    file.write_bytes(data)
    where = "record layers.3, part .*layers.3.0"
    with (
        pytest.raises(CorruptCheckpointError, match=rf"^{where}: got digest"),
        endor.stream(apply, tmp_path / "x", device_memory=device, host_memory=host) as run,
    ):
        run(inputs())


def test_budget_too_small(path: Path) -> None:
    with pytest.raises(DoesNotFitError, match="got 1 B of device memory"):
        endor.stream(apply, path, device_memory=1)
    with pytest.raises(DoesNotFitError, match="got 1 B of host memory"):
        endor.stream(apply, path, device_memory=device_budget(path, 0), host_memory="1B")


def test_abandoned_stream_stops_its_readers(path: Path) -> None:
    run = endor.stream(apply, path, device_memory=device_budget(path, 0), host_memory=host_budget(path, 6))
    executor = weakref.ref(run._executor)
    run(inputs())
    del run
    gc.collect()
    assert executor() is None


def test_exit_without_close(path: Path) -> None:
    """A reader inside TensorStore when the interpreter ends would abort the process."""
    script = (
        "import sys, time, endor_jax as endor\n"
        "from endor_jax.store.reader import Checkpoint\n"
        "slow = Checkpoint.read_part\n"
        "Checkpoint.read_part = lambda *a, **k: [slow(*a, **k) for _ in range(100)]\n"
        f"run = endor.stream(lambda p, x, s: (x, s), {str(path)!r}, "
        f"device_memory={device_budget(path, 0)}, host_memory={host_budget(path, 6)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")


class TestLike:
    def test_structure_that_json_cannot_tell(self, tmp_path: Path) -> None:
        from flax import nnx

        def make(seed: int) -> nnx.Module:
            return nnx.Linear(64, 64, rngs=nnx.Rngs(seed))

        layers = [nnx.state(make(i)) for i in range(3)]
        endor.save(tmp_path / "x", layers)
        with pytest.raises(InvalidInputError, match=r"checkpoint .*x: got parameter trees with.*pass like="):
            endor.stream(apply, tmp_path / "x")
        graph, like = nnx.split(nnx.eval_shape(lambda: make(0)))

        def layer(params: Any, x: Any, state: Any) -> Any:
            return nnx.merge(graph, params)(x), state

        with endor.stream(layer, tmp_path / "x", device_memory=PLENTY, host_memory=PLENTY, like=like) as run:
            x, _ = run(inputs())
        expected: Any = inputs()
        step = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
        for state in layers:
            expected = step(state, expected)
        assert np.asarray(x).tobytes() == np.asarray(expected).tobytes()

    def test_of_another_structure(self, path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"lack \['w'\] and add \['bias', 'down', 'up'\]"):
            endor.stream(apply, path, like={"w": 0})
