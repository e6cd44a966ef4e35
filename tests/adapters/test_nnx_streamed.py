"""NNX models whose blocks are streamed: as in memory, with the model's code as it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import endor_jax as endor
from endor_jax.adapters.nnx import save_nnx, stream_nnx
from endor_jax.errors import InvalidInputError, StreamError, UnsupportedError

WIDTH, COUNT = 64, 5
TIGHT: dict[str, Any] = {"device_memory": 110_000, "host_memory": 200_000, "reader": "preadv"}
"""Everything of a model of `Mlp` streamed from disk."""
X = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)


class Mlp(nnx.Module):
    """A residual block; what it is asked for is static, what it works on are arrays."""

    traces = 0

    def __init__(self, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.1)  # a function made anew for every block
        self.up = nnx.Linear(WIDTH, 96, kernel_init=init, rngs=rngs)
        self.down = nnx.Linear(96, WIDTH, kernel_init=init, rngs=rngs)
        self.act = lambda x: jnp.tanh(x)

    def __call__(self, x: Any, scale: Any = None, *, twice: bool = False) -> Any:
        Mlp.traces += 1
        delta = self.inner(x)
        if twice:
            delta = 2 * delta
        return x + delta if scale is None else x + scale["by"] * delta

    def inner(self, x: Any) -> Any:
        return self.down(self.act(self.up(x)))


def mlps(rngs: nnx.Rngs) -> list[Mlp]:
    return [Mlp(rngs) for _ in range(COUNT)]


class Listed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List(mlps(rngs))
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)
        self.rngs = rngs  # random keys are part of the rest

    def __call__(self, x: Any, *args: Any, order: Any = range(COUNT), **kwargs: Any) -> Any:
        x = self.stem(x)
        for index in order:
            x = self.blocks[index](x, *args, **kwargs)
        return self.head(x)


class Named(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.Dict({f"a{i}": block for i, block in enumerate(mlps(rngs))})

    def __call__(self, x: Any) -> Any:
        for name in self.blocks:
            x = self.blocks[name](x)
        return x


class Attributes(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        for i, block in enumerate(mlps(rngs)):
            setattr(self, f"layer{i}", block)

    def __call__(self, x: Any) -> Any:
        for i in range(COUNT):
            x = getattr(self, f"layer{i}")(x)
        return x


def sequential(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(nnx.Linear(WIDTH, WIDTH, rngs=rngs), *mlps(rngs))


def as_resident(model: Any, blocks: list[Any]) -> None:
    """Blocks jitted one by one, as they are when they are streamed."""
    graph, _ = nnx.split(blocks[0])

    class Jitted(type(blocks[0])):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            state = nnx.state(self)
            return step(state, args, kwargs.get("scale"))

    step = jax.jit(lambda state, args, scale: nnx.merge(graph, state)(*args, scale=scale))
    for block in blocks:
        block.__class__ = Jitted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nnx") / "x.endor"
    save_nnx(path, Listed(nnx.Rngs(0)), blocks="blocks.*")
    return path


def abstract(make: Callable[..., Any] = Listed) -> Any:
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def test_streamed_from_disk_it_has_the_bits_of_its_jitted_blocks(path: Path) -> None:
    model, Mlp.traces = Listed(nnx.Rngs(0)), 0
    with stream_nnx(abstract(), path, **TIGHT) as run:
        assert run.plan.count("disk") == COUNT
        assert run.plan.device_bytes <= TIGHT["device_memory"] < 4 * COUNT * 2 * WIDTH * 96
        first, again = run.model(X), run.model(X)
        assert Mlp.traces == 1
        assert run.bytes_read == 2 * run.plan.read_bytes_per_pass
        assert run.bytes_transferred == 2 * run.plan.transferred_bytes_per_pass
        scaled = run.model(X, scale={"by": np.float32(3)}), run.model(X, {"by": np.float32(4)}, twice=True)
        assert Mlp.traces == 3
    expected = model(X, scale={"by": np.float32(3)}), model(X, {"by": np.float32(4)}, twice=True)
    np.testing.assert_allclose(scaled[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(scaled[1], expected[1], atol=1e-5)
    as_resident(model, list(model.blocks))
    assert np.asarray(first).tobytes() == np.asarray(again).tobytes() == np.asarray(model(X)).tobytes()


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (Named, "blocks.*"),
        (Attributes, "layer*"),
        (sequential, [f"layers.{i}" for i in range(1, COUNT + 1)]),
    ],
)
def test_stacks_of_every_kind(tmp_path: Path, make: Any, blocks: Any) -> None:
    model = make(nnx.Rngs(0))
    manifest = save_nnx(tmp_path / "x", model, blocks=blocks)
    assert len(manifest.signatures) == 2
    with stream_nnx(abstract(make), tmp_path / "x", **TIGHT) as run:
        np.testing.assert_allclose(run.model(X), model(X), atol=1e-5)


def test_blocks_may_be_left_out_repeated_and_asked_for_in_any_order(path: Path) -> None:
    model = Listed(nnx.Rngs(0))
    orders = [(0, 2, 4), (1,), (1, 1, 2), (), (4, 3), tuple(range(COUNT))]
    with stream_nnx(abstract(), path, **TIGHT) as run:
        for order, passes in zip(orders, (1, 2, 2, 2, 3, 4), strict=True):
            np.testing.assert_allclose(run.model(X, order=order), model(X, order=order), atol=1e-5)
            # Of the last pass, no more has been read for the model than it has asked for.
            read = run.bytes_read / run.plan.read_bytes_per_pass
            assert passes - 1 < read <= passes


def test_the_copy_is_the_users_model(path: Path) -> None:
    model = Listed(nnx.Rngs(1))
    before = nnx.state(model)
    with stream_nnx(model, path) as run:
        assert isinstance(run.model, Listed)
        assert all(isinstance(block, Mlp) for block in run.model.blocks)
        assert type(run.model.blocks[0]) is type(run.model.blocks[1])
        assert run.model.blocks[0].up.out_features == 96
        resident = Listed(nnx.Rngs(0))  # values are those of the checkpoint, not of the model that was given
        inner = run.model.blocks[3].inner(X)
        np.testing.assert_allclose(inner, resident.blocks[3].inner(X), atol=1e-5)
        keys = [jax.random.key_data(m.rngs.default.key.get_value()) for m in (run.model, resident)]
        assert np.array_equal(keys[0], keys[1])
    assert all(type(block) is Mlp for block in model.blocks)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, before, nnx.state(model)))


class Stateful(nnx.Module):
    """Statistics, dropout, a cache: everything that changes when it is called."""

    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, *, decode: bool = False) -> Any:
        x = x + self.dropout(self.norm(self.attention(x, decode=decode)))
        return x, {"sum": x.sum(), "nothing": None}


class Recurring(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Stateful(rngs) for _ in range(2)])

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        sums = []
        for block in self.blocks:
            x, aux = block(x, **kwargs)
            sums.append(aux["sum"])
        return x, sums


def changing(model: nnx.Module) -> list[Any]:
    state = nnx.state(model, nnx.Not(nnx.Param))
    return [jax.random.key_data(v) if v.dtype.name.startswith("key") else v for v in jax.tree.leaves(state)]


def test_state_of_blocks_changes_as_in_memory(tmp_path: Path) -> None:
    model, tokens = Recurring(nnx.Rngs(0)), np.stack([X, -X])
    save_nnx(tmp_path / "x", model, blocks="blocks.*")
    with stream_nnx(abstract(Recurring), tmp_path / "x", **TIGHT) as run:
        streamed: Any = run.model
        for each in (model, streamed):
            each.train()
        for _ in range(2):
            for got, expected in zip(
                jax.tree.leaves(streamed(tokens)), jax.tree.leaves(model(tokens)), strict=True
            ):
                np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
        for each in (model, streamed):
            each.eval()
            for block in each.blocks:
                block.attention.init_cache((2, 4, WIDTH))
        for i in range(2):
            one = tokens[:, i : i + 1]
            got, expected = streamed(one, decode=True), model(one, decode=True)
            np.testing.assert_allclose(got[0], expected[0], rtol=1e-2, atol=1e-2)
        pairs = list(zip(changing(streamed), changing(model), strict=True))
        assert len(pairs) == 2 * 7
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


class Transformed(nnx.Module):
    """A block whose methods NNX transforms; all of its variables come back from them."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear, self.norm = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.BatchNorm(WIDTH, rngs=rngs)

    @nnx.jit
    def __call__(self, x: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.kept(x)

    @nnx.remat
    def kept(self, x: Any) -> Any:
        return x + jnp.tanh(self.norm(self.linear(x)))

    @nnx.jit(static_argnames="do")
    def both(self, x: Any, do: str) -> Any:
        if do == "change":
            self.linear.kernel.set_value(2 * self.linear.kernel.get_value())
        return self.kept(x)

    @staticmethod
    def of(x: Any) -> Any:
        return x


class Transforming(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Transformed(rngs) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        block: Any
        for block in self.blocks:
            x = block.of(block.both(block.kept(block(x)), "nothing"))
        return x


def test_blocks_with_jit_and_remat_of_their_own(tmp_path: Path) -> None:
    model = Transforming(nnx.Rngs(0))
    save_nnx(tmp_path / "x", model, blocks="blocks.*")
    with stream_nnx(abstract(Transforming), tmp_path / "x", reader="preadv") as run:
        streamed: Any = run.model
        np.testing.assert_allclose(streamed(X), model(X), rtol=1e-2, atol=1e-2)
        for got, expected in zip(changing(streamed), changing(model), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
        with pytest.raises(
            UnsupportedError, match=r"blocks\.0: got a call of both that changes its Param linear"
        ):
            streamed.blocks[0].both(X, "change")


class Counting(nnx.Module, pytree=False):
    """A block that has a counter and random keys in common with the arguments of its call."""

    def __init__(self, rngs: nnx.Rngs, counter: nnx.Variable[Any]):
        self.linear, self.counter, self.rngs = nnx.Linear(WIDTH, WIDTH, rngs=rngs), counter, rngs

    def __call__(self, x: Any, counter: Any, rngs: Any) -> Any:
        @nnx.custom_vjp
        def apply(linear: Any, x: Any) -> Any:
            return linear(x)

        apply.defvjp(lambda linear, x: (apply(linear, x), None), lambda _, gradient: gradient)
        self.counter[...] += 1
        noise = rngs.normal((WIDTH,)) + self.rngs.normal((WIDTH,))
        return apply(self.linear, x) + counter[...] + noise[None]


class Counters(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.counter = nnx.Variable(jnp.zeros(()))
        self.rngs = rngs
        self.blocks = nnx.List([Counting(rngs, self.counter) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x, self.counter, self.rngs)
        return x


def test_variables_that_a_block_and_its_arguments_have_in_common(tmp_path: Path) -> None:
    model = Counters(nnx.Rngs(0))
    save_nnx(tmp_path / "x", model, blocks="blocks.*")
    with stream_nnx(abstract(Counters), tmp_path / "x", reader="preadv") as run:
        streamed: Any = run.model
        np.testing.assert_allclose(streamed(X), model(X), atol=1e-5)
        assert streamed.counter[...] == model.counter[...] == 3
        for got, expected in zip(changing(streamed), changing(model), strict=True):
            np.testing.assert_array_equal(got, expected)


class Rotating(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear, self.angles = nnx.Linear(WIDTH, WIDTH, rngs=rngs), jnp.linspace(0, 6, WIDTH)

    def __call__(self, x: Any) -> Any:
        return self.linear(x) * jnp.cos(self.angles)[None]


class WithTables(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = jnp.linspace(0, 1, WIDTH)
        self.blocks = nnx.List([Rotating(rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x + self.table[None])
        return x


def test_plain_arrays_come_from_the_checkpoint(tmp_path: Path) -> None:
    model = WithTables(nnx.Rngs(0))
    save_nnx(tmp_path / "x", model, blocks="blocks.*")
    for made in (abstract(WithTables), model):
        with stream_nnx(made, tmp_path / "x") as run:
            np.testing.assert_allclose(run.model(X), model(X), atol=1e-5)


class NeedsArguments(nnx.Module):
    def __init_subclass__(cls, *, kind: str = "", **keywords: Any):
        super().__init_subclass__(**keywords)
        if not kind:
            raise TypeError("no kind")


class Kind(NeedsArguments, kind="a"):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)


def test_classes_that_have_no_subclasses_are_refused(tmp_path: Path) -> None:
    model = nnx.List([Kind(nnx.Rngs(0)), Kind(nnx.Rngs(1))])
    save_nnx(tmp_path / "x", model, blocks="*")
    with pytest.raises(
        UnsupportedError, match=r"class Kind: got a class whose subclasses need arguments \(no kind"
    ):
        stream_nnx(model, tmp_path / "x")


class EncoderDecoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.encoder, self.decoder = Attributes(rngs), nnx.List([Cross(rngs) for _ in range(2)])

    def __call__(self, x: Any, rngs: nnx.Rngs) -> Any:
        memory, y = self.encoder(x), x
        for block in self.decoder:
            y = block(y, memory, rngs=rngs)
        return y


class Cross(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.own, self.other = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, y: Any, memory: Any, *, rngs: nnx.Rngs) -> Any:
        return self.own(y) + self.other(memory) * rngs.normal((WIDTH,))[None]


def test_encoder_and_decoder_with_random_states_as_arguments(tmp_path: Path) -> None:
    model = EncoderDecoder(nnx.Rngs(0))
    save_nnx(tmp_path / "x", model, blocks=["encoder.layer*", "decoder.*"])
    ours, theirs = nnx.Rngs(7), nnx.Rngs(7)
    with stream_nnx(abstract(EncoderDecoder), tmp_path / "x", **TIGHT) as run:
        np.testing.assert_allclose(run.model(X, ours), model(X, theirs), rtol=1e-4, atol=1e-5)
    assert ours.default.count.get_value() == theirs.default.count.get_value() == 2


def test_calls_inside_transformations_are_refused(path: Path) -> None:
    with stream_nnx(abstract(), path) as run:
        for call in (jax.jit(lambda x: run.model(x)), jax.grad(lambda x: run.model(x).sum())):
            with pytest.raises(
                UnsupportedError, match=r"layer blocks\.0: got a call inside a JAX transformation"
            ):
                call(X)
        with pytest.raises(UnsupportedError, match=r"layer Mlp: got a call inside a JAX transformation"):
            nnx.jit(lambda model, x: model(x))(run.model, X)
        model: Any = run.model
        run.model(X)  # the stream is as good as before
    with pytest.raises(StreamError, match=r"a call after close\(\)"):
        model(X)
    block = model.blocks[0]
    del run, model
    with pytest.raises(UnsupportedError, match="got a call inside a JAX transformation"):
        nnx.clone(block)(X)


@pytest.mark.parametrize(
    "read",
    [
        lambda block: block.up.kernel[...],
        lambda block: block.up.kernel * 2,
        lambda block: X @ block.up.kernel,
        lambda block: block.up.kernel.T,
        lambda block: block.up.kernel.astype("float32"),
        lambda block: np.asarray(block.up.kernel.get_value()),
        lambda block: block.up(X),
    ],
)
def test_parameters_read_outside_of_their_block_are_refused(path: Path, read: Any) -> None:
    with stream_nnx(abstract(), path) as run:
        model: Any = run.model
        assert model.blocks[1].up.kernel.shape == (WIDTH, 96)
        with pytest.raises(
            UnsupportedError, match=r"parameter blocks\.1\.\w+\.\w+: got a read of its value out"
        ):
            read(model.blocks[1])
        with pytest.raises(TypeError, match=r"StreamedParameter'> is not a valid JAX type"):
            jnp.sum(model.blocks[1].up.kernel)


class Odd(nnx.Module):
    """What a block must not do, one at a time."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(rngs.normal((WIDTH, WIDTH)))

    def __call__(self, x: Any, do: Any = None) -> Any:
        if do == "change":
            self.kernel.set_value(2 * self.kernel.get_value())
        if do == "add":
            self.seen = nnx.Intermediate(x)
        if do == "set":
            self.calls = 1
        return x @ self.kernel.get_value()


class Odds(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Odd(rngs), Odd(rngs)])


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            "change",
            r"blocks\.1: got a call of __call__ that changes its Param kernel, expected parameters that",
        ),
        ("add", r"blocks\.1: got a call of __call__ that adds or removes variables, or sets attributes"),
        ("set", r"blocks\.1: got a call of __call__ that adds or removes variables, or sets attributes"),
        ({1, 2}, r"blocks\.1: got an argument or attribute that is no array and cannot be hashed"),
    ],
)
def test_blocks_that_cannot_be_streamed(tmp_path: Path, do: Any, message: str) -> None:
    save_nnx(tmp_path / "x", Odds(nnx.Rngs(0)), blocks="blocks.*")
    with (
        stream_nnx(abstract(Odds), tmp_path / "x") as run,
        pytest.raises(UnsupportedError, match=message),
    ):
        run.model.blocks[1](X, do)  # pyright: ignore[reportAttributeAccessIssue]


def test_shared_parameters_are_refused(tmp_path: Path) -> None:
    model = Listed(nnx.Rngs(0))
    model.blocks[2].up.kernel = model.blocks[1].up.kernel
    with pytest.raises(
        UnsupportedError, match=r"block blocks\.2: got a parameter kernel that another module has"
    ):
        save_nnx(tmp_path / "x", model, blocks="blocks.*")
    model = Listed(nnx.Rngs(0))
    model.stem.kernel = model.blocks[1].up.kernel
    with pytest.raises(
        UnsupportedError, match=r"block blocks\.1: got a parameter kernel that another module has"
    ):
        save_nnx(tmp_path / "x", model, blocks="blocks.*")


class Rest(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rest, self.more = Mlp(rngs), Mlp(rngs)


def test_models_that_are_not_those_of_the_checkpoint(tmp_path: Path, path: Path) -> None:
    wide = abstract()
    wide.blocks[1].up.kernel.set_value(jax.ShapeDtypeStruct((WIDTH, 95), jnp.float32))
    message = (
        r"blocks\.1, up\.kernel: got float32\[64, 96\] in the checkpoint, expected float32\[64, 95\], as the"
    )
    with pytest.raises(InvalidInputError, match=message):
        stream_nnx(wide, path)
    with pytest.raises(
        InvalidInputError, match=r"blocks\.0, act|blocks\.0, down\.bias: got .* expected nothing"
    ):
        stream_nnx(abstract(Named), path)
    more = abstract()
    more.extra = nnx.Param(jax.ShapeDtypeStruct((2,), jnp.bfloat16))
    with pytest.raises(
        InvalidInputError, match=r"the rest, extra: got nothing in the checkpoint, expected bfloat16"
    ):
        stream_nnx(more, path)
    with pytest.raises(InvalidInputError, match="save_nnx: got a block called 'rest', expected another name"):
        save_nnx(tmp_path / "x", Rest(nnx.Rngs(0)), blocks="*")
    endor.save(tmp_path / "y", [{"w": X}])
    with pytest.raises(
        InvalidInputError, match=r"got one written by endor_jax\.save, expected .*save_nnx; write"
    ):
        stream_nnx(abstract(), tmp_path / "y")
    dotted = nnx.Dict({"a": nnx.Dict({"b": Mlp(nnx.Rngs(0))}), "a.b": Mlp(nnx.Rngs(0))})
    with pytest.raises(InvalidInputError, match=r"got two modules or variables named 'all\.a\.b"):
        save_nnx(tmp_path / "z", Holding(dotted), blocks="all.*")


class Holding(nnx.Module):
    def __init__(self, all: Any):
        self.all = all


def test_dropped_without_close_it_stops_reading(path: Path) -> None:
    run: Any = stream_nnx(abstract(), path, **TIGHT)
    run.model(X, order=(0, 1))
    executor = weakref.ref(run._stack._executor)
    del run
    gc.collect()
    assert executor() is None


def test_closing_twice_is_nothing(path: Path) -> None:
    run: Any = stream_nnx(abstract(), path, **TIGHT)
    x = run.model(X)
    run.close()
    run.close()
    assert x.shape == (2, 3)
