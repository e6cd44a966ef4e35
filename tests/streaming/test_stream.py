"""`stream`: the same bits whatever the budget, one compilation, exact byte counts, nothing left behind."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacks import apply, device_budget, host_budget, inputs, save_in_parts, stack

import endor_jax as endor
from endor_jax.errors import StreamError, UnsupportedError
from endor_jax.streaming.plan import Plan

COUNT = 10
LAYERS = stack(COUNT)
PLENTY = 2**40


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "x.endor"
    endor.save(path, LAYERS)
    return path


def plain(layers: list[Any], x: Any, states: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """The same layers, jitted on dense parameters."""
    step = jax.jit(apply)
    states = list(states)
    for i, layer in enumerate(layers):
        x, states[i] = step(layer, x, states[i])
    return np.asarray(x), states


def zeros(count: int) -> list[Any]:
    return [jnp.zeros(()) for _ in range(count)]


def test_every_budget_depth_and_tier_gives_the_same_bits(path: Path) -> None:
    tiers = set()
    expected, states = plain(LAYERS, inputs(), zeros(COUNT))
    for depth, device, host in [
        *((1, 0, 5), (2, 0, 6), (3, 0, 7), (4, 0, 8)),  # all streamed
        *((2, 1, 7), (1, 1, 6)),  # some of each
        *((4, 0, COUNT), (2, COUNT, 0)),  # all in host memory, all on the device
    ]:
        memory = device_budget(path, device), host_budget(path, host)
        with endor.stream(apply, path, device_memory=memory[0], host_memory=memory[1], depth=depth) as run:
            x, new = run(inputs(), zeros(COUNT))
            again, _ = run(inputs(), zeros(COUNT))
            tiers.add(frozenset(run.plan.tiers))
        assert np.asarray(x).tobytes() == np.asarray(again).tobytes() == expected.tobytes()
        assert np.asarray(new).tobytes() == np.asarray(states).tobytes()
    assert tiers == {
        frozenset(names) for names in (["disk"], ["host"], ["device"], ["device", "host", "disk"])
    }


def expected_bytes(plan: Plan, passes: int) -> tuple[int, int]:
    stay = [demand for demand, tier in zip(plan.demands, plan.tiers, strict=True) if tier != "disk"]
    resident = [demand for demand, tier in zip(plan.demands, plan.tiers, strict=True) if tier == "device"]
    return (
        sum(demand.read_bytes for demand in stay) + passes * plan.read_bytes_per_pass,
        sum(demand.buffer_bytes for demand in resident) + passes * plan.transferred_bytes_per_pass,
    )


@pytest.mark.parametrize(("device", "host"), [(0, 6), (1, 6), (2, 8), (0, 50), (50, 6)])
def test_bytes_are_those_of_the_passes(path: Path, device: int, host: int) -> None:
    with endor.stream(
        apply, path, device_memory=device_budget(path, device), host_memory=host_budget(path, host)
    ) as run:
        for passes in range(5):
            assert (run.bytes_read, run.bytes_transferred) == expected_bytes(run.plan, passes)
            run(inputs())
        assert run.bytes_read == expected_bytes(run.plan, 5)[0]


def test_checkpoint_counts_what_is_read_ahead_too(path: Path) -> None:
    device, host = device_budget(path, 0), host_budget(path, 6)
    with endor.stream(apply, path, device_memory=device, host_memory=host) as run:
        run(inputs())
        ahead = run._checkpoint.bytes_read - run.bytes_read
        assert 0 <= ahead <= run.plan.slots * run.plan.slot_bytes


def test_one_compilation_for_all_layers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traces = []

    def counted(params: Any, x: Any, state: Any) -> Any:
        traces.append(1)
        return apply(params, x, state)

    device, host = device_budget(path, 1), host_budget(path, 7)
    with (
        jax.log_compiles(),
        caplog.at_level(logging.WARNING, logger="jax"),
        endor.stream(counted, path, device_memory=device, host_memory=host) as run,
    ):
        x, states = run(inputs(), [np.zeros((), np.float32)] * COUNT)
        run(x, states)
        run(inputs(), states)
    compiled = [record for record in caplog.records if record.getMessage().startswith("Compiling jit(step)")]
    assert (len(traces), len(compiled)) == (1, 1)


def test_one_compilation_per_signature(tmp_path: Path) -> None:
    traces = []

    def counted(params: Any, x: Any, state: Any) -> Any:
        traces.append(params["up"].shape)
        return apply(params, x, state)

    layers = [*stack(2), *stack(3, hidden=128), *stack(2, seed=1)]
    endor.save(tmp_path / "x", layers)
    expected, _ = plain(layers, inputs(), [None] * 7)
    device, host = device_budget(tmp_path / "x", 0), host_budget(tmp_path / "x", 5)
    with endor.stream(counted, tmp_path / "x", device_memory=device, host_memory=host) as run:
        assert run.plan.count("disk") == 7
        for _ in range(3):
            assert np.asarray(run(inputs())[0]).tobytes() == expected.tobytes()
    assert sorted(traces) == [(96, 64), (128, 64)]


def test_trees_of_one_layout_are_told_apart(tmp_path: Path) -> None:
    leaf = np.full(3, 2.0, np.float32)
    endor.save(tmp_path / "x", [[leaf], (leaf,), [leaf]])
    seen = []

    def layer(params: Any, x: Any, state: Any) -> Any:
        seen.append(type(params))
        return x * params[0], state

    with endor.stream(layer, tmp_path / "x", device_memory=PLENTY, host_memory=PLENTY) as run:
        x, states = run(np.ones(3, np.float32))
    assert seen == [list, tuple]
    assert np.array_equal(x, np.full(3, 8.0))
    assert states == [None] * 3


@pytest.mark.parametrize("parts", [2, 3])
def test_records_of_several_parts(tmp_path: Path, parts: int) -> None:
    save_in_parts(tmp_path / "x", LAYERS, parts)
    expected, _ = plain(LAYERS, inputs(), [None] * COUNT)
    for depth, residents, buffers in ((1, 1, 6), (2, 1, 8), (4, 0, 9)):
        budget = device_budget(tmp_path / "x", residents)
        host = host_budget(tmp_path / "x", buffers)
        with endor.stream(apply, tmp_path / "x", device_memory=budget, host_memory=host, depth=depth) as run:
            for _ in range(3):
                assert np.asarray(run(inputs())[0]).tobytes() == expected.tobytes()
            assert (run.bytes_read, run.bytes_transferred) == expected_bytes(run.plan, 3)


def test_many_passes_wrap_around(path: Path) -> None:
    device, host = device_budget(path, 1), host_budget(path, 7)
    x: Any = inputs()
    expected: Any = inputs()
    with endor.stream(apply, path, device_memory=device, host_memory=host) as run:
        for _ in range(20):
            (x, _), (expected, _) = run(x), plain(LAYERS, expected, [None] * COUNT)
            assert np.asarray(x).tobytes() == expected.tobytes()


def walked(run: endor.Stream, x: Any, skip: set[int]) -> np.ndarray:
    for layer in run.layers():
        assert layer.name == f"layers.{layer.index}"
        if layer.index not in skip:
            x, state = layer(x)
            assert state is None
    return np.asarray(x)


@pytest.mark.parametrize(("device", "host"), [(0, 6), (1, 6), (0, COUNT), (COUNT, 0)])
def test_a_pass_that_its_caller_walks(path: Path, device: int, host: int) -> None:
    """Layers left out, in passes of both kinds, leave everything else as it was."""
    with endor.stream(
        apply, path, device_memory=device_budget(path, device), host_memory=host_budget(path, host)
    ) as run:
        for number, skip in enumerate(({3}, set(), {0, 1, 2, COUNT - 1}, set(range(COUNT)), {5})):
            kept = [layer for i, layer in enumerate(LAYERS) if i not in skip]
            expected, _ = plain(kept, inputs(), [None] * len(kept))
            assert walked(run, inputs(), skip).tobytes() == expected.tobytes()
            assert (run.bytes_read, run.bytes_transferred) == expected_bytes(run.plan, 2 * number + 1)
            whole, _ = plain(LAYERS, inputs(), [None] * COUNT)
            assert np.asarray(run(inputs())[0]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("left_at", [0, 4, COUNT - 1])
def test_a_pass_that_is_left_early_passes_by(path: Path, left_at: int) -> None:
    device, host = device_budget(path, 1), host_budget(path, 6)
    with endor.stream(apply, path, device_memory=device, host_memory=host) as run:
        for number in range(1, 4):
            x: Any = inputs()
            for layer in run.layers():
                x, _ = layer(x)
                if layer.index == left_at:
                    break
            expected, _ = plain(LAYERS[: left_at + 1], inputs(), [None] * (left_at + 1))
            assert np.asarray(x).tobytes() == expected.tobytes()
            assert (
                walked(run, inputs(), set()).tobytes() == plain(LAYERS, inputs(), [None] * COUNT)[0].tobytes()
            )
            assert (run.bytes_read, run.bytes_transferred) == expected_bytes(run.plan, 2 * number)


def test_a_layer_may_be_called_twice_in_its_turn_and_never_after(path: Path) -> None:
    device, host = device_budget(path, 0), host_budget(path, 6)
    with endor.stream(apply, path, device_memory=device, host_memory=host) as run:
        layers = run.layers()
        first = next(layers)
        x, state = first(first(inputs(), np.zeros((), np.float32))[0], np.zeros((), np.float32))
        expected, _ = plain([LAYERS[0]] * 2, inputs(), [None] * 2)
        assert np.asarray(x).tobytes() == expected.tobytes()
        assert state.shape == ()
        next(layers)
        with pytest.raises(StreamError, match=r"record layers\.0: got a call after its turn"):
            first(inputs())
        run(inputs())  # another pass takes over
        with pytest.raises(StreamError, match="got a layer of a pass that was left"):
            next(layers)
        assert len(list(run.layers())) == COUNT  # the stream is as good as before
        last = next(iter(run.layers()))
    with pytest.raises(StreamError, match="a call after its turn"):
        last(inputs())
    with pytest.raises(StreamError, match=r"a call after close\(\)"):
        next(run.layers())


def test_a_layer_that_is_called_again_and_again_keeps_no_results(path: Path) -> None:
    with endor.stream(apply, path) as run:
        first = next(run.layers())
        x, states = inputs(), np.zeros((), np.float32)
        kept = []
        for _ in range(20):
            x, states = jax.block_until_ready(first(x, states))
            kept.append(weakref.ref(x))
        assert sum(each() is not None for each in kept) <= 2


TRANSFORMED = {
    "jit": lambda call: jax.jit(call)(inputs()),
    "grad": lambda call: jax.grad(lambda x: call(x).sum())(inputs()),
    "vmap": lambda call: jax.vmap(call)(inputs()[None]),
    "jvp": lambda call: jax.jvp(call, (inputs(),), (inputs(),)),
    "jit of constants": lambda call: jax.jit(lambda: call(inputs()))(),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_pass_inside_a_transformation_is_refused_and_the_stream_goes_on(path: Path, name: str) -> None:
    """Its steps would run when the memory of their records has long been written again."""
    expected, _ = plain(LAYERS, inputs(), zeros(COUNT))
    with endor.stream(
        apply, path, device_memory=device_budget(path, 0), host_memory=host_budget(path, 6)
    ) as run:

        def whole(x: Any) -> Any:
            return run(x, zeros(COUNT))[0]

        def walked(x: Any) -> Any:
            for layer in run.layers():
                x, _ = layer(x, jnp.zeros(()))
            return x

        for call in (whole, walked):
            with pytest.raises(
                UnsupportedError, match=r"layer layers\.0: got a call inside a JAX transformation"
            ):
                TRANSFORMED[name](call)
        assert np.asarray(whole(inputs())).tobytes() == expected.tobytes()


def test_a_layer_that_closes_over_something_traced_is_refused(path: Path) -> None:
    def gradient(scale: jax.Array) -> jax.Array:
        def layer(params: Any, x: Any, state: Any) -> Any:
            x, state = apply(params, x, state)
            return x * scale, state

        with endor.stream(layer, path) as run:
            return run(inputs(), zeros(COUNT))[0].sum()

    with pytest.raises(UnsupportedError, match="got a call inside a JAX transformation"):
        jax.grad(gradient)(jnp.ones(()))
