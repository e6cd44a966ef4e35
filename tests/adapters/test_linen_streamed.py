"""Linen models whose blocks are streamed: as in memory, with the model's code as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import flax.core
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import endor_jax as endor
from endor_jax.adapters.linen import StreamedLinen, save_linen, stream_linen
from endor_jax.errors import InvalidInputError, StreamError, UnsupportedError

WIDTH, COUNT = 64, 5
TIGHT: dict[str, Any] = {"device_memory": 110_000, "host_memory": 200_000, "reader": "preadv"}
"""Everything of a model of `Block` streamed from disk."""
X = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)


class Block(nn.Module):
    """A residual block with statistics, dropout and something sown."""

    width: int
    act: Any = jnp.tanh
    traces: ClassVar[list[int]] = [0]

    @nn.compact
    def __call__(self, x: Any, scale: Any = None, *, train: bool = False, do: Any = None) -> Any:
        Block.traces[0] += 1
        init = nn.initializers.normal(0.1)
        delta = nn.Dense(WIDTH, kernel_init=init)(self.act(nn.Dense(self.width, kernel_init=init)(x)))
        delta = nn.BatchNorm(use_running_average=not train, momentum=0.5)(delta)
        self.sow("intermediates", "delta", delta.sum())
        if do == "dropout":
            delta = nn.Dropout(0.5, deterministic=False)(delta)
        return x + delta if scale is None else x + scale["by"] * delta


class Compact(nn.Module):
    """Its blocks are made in the call, each with a function of its own."""

    @nn.compact
    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        x = nn.Dense(WIDTH, name="stem")(x)
        for i in range(COUNT):
            x = Block(96, act=lambda x: jnp.tanh(x), name=f"block_{i}")(x, *args, **kwargs)
        return nn.Dense(3, name="head")(x)


class Attention(nn.Module):
    """A block with a parameter asked for in setup, another method, and a cache."""

    def setup(self) -> None:
        self.own = self.param("own", nn.initializers.normal(), (WIDTH,))
        self.inner = nn.MultiHeadDotProductAttention(4, decode=True)

    def __call__(self, x: Any) -> Any:
        return x + self.inner(x + self.own[None, None]), {"sum": x.sum(), "nothing": None}

    def shifted(self, x: Any) -> Any:
        return x + self.own[None, None]


class Setup(nn.Module):
    def setup(self) -> None:
        self.layers = [Attention() for _ in range(3)]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x, _ = layer(x)
        return x

    def second(self, x: Any) -> Any:
        return self.layers[1].shifted(x)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    found = Compact().init(jax.random.key(0), X)
    return {name: found[name] for name in ("params", "batch_stats")}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any]) -> Path:
    path = tmp_path_factory.mktemp("linen") / "x.endor"
    save_linen(path, flax.core.freeze(variables), blocks="block_*")
    return path


def resident(variables: Any, x: Any) -> np.ndarray:
    """`Compact`, its blocks jitted one by one, as they are when they are streamed."""
    params, statistics = variables["params"], variables["batch_stats"]
    block = Block(96)
    step = jax.jit(
        lambda params, statistics, x: block.apply({"params": params, "batch_stats": statistics}, x)
    )
    x = nn.Dense(WIDTH).apply({"params": params["stem"]}, x)
    for i in range(COUNT):
        x = step(params[f"block_{i}"], statistics[f"block_{i}"], x)
    return np.asarray(nn.Dense(3).apply({"params": params["head"]}, x))


def test_streamed_from_disk_it_has_the_bits_of_its_jitted_blocks(path: Path, variables: Any) -> None:
    with stream_linen(Compact(), path, **TIGHT) as run:
        assert run.plan.count("disk") == COUNT
        assert set(run.variables["params"]) == {"stem", "head"}
        Block.traces[0] = 0
        first, again = run.apply(run.variables, X), run.apply(run.variables, X)
        assert Block.traces == [1]
        assert run.bytes_read == 2 * run.plan.read_bytes_per_pass
        assert run.bytes_transferred == 2 * run.plan.transferred_bytes_per_pass
        scale = {"by": np.float32(3)}
        scaled = run.apply(run.variables, X, scale)
    assert np.asarray(first).tobytes() == np.asarray(again).tobytes() == resident(variables, X).tobytes()
    model: Any = Compact()
    np.testing.assert_allclose(scaled, model.apply(variables, X, scale), atol=1e-5)


@pytest.mark.parametrize(
    "mutable",
    [["batch_stats"], ["batch_stats", "intermediates", "params"], True, flax.core.DenyList("params")],
)
def test_collections_change_as_in_memory(path: Path, variables: Any, mutable: Any) -> None:
    model: Any = Compact()
    with stream_linen(model, path) as run:
        got, changed = run.apply(run.variables, X, train=True, mutable=mutable)
        expected, wanted = model.apply(variables, X, train=True, mutable=mutable)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
    for each in (changed, wanted):
        each.pop("params", None)
    assert jax.tree.structure(changed) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(changed), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2)


def test_blocks_made_in_setup_with_caches_and_other_methods(tmp_path: Path) -> None:
    model: Any = Setup()
    tokens = np.stack([X, -X])
    variables = model.init(jax.random.key(0), tokens)
    save_linen(tmp_path / "x", {"params": variables["params"]}, blocks="layers_*")
    cache, ours = variables["cache"], variables["cache"]
    with stream_linen(model, tmp_path / "x", reader="preadv") as run:
        for i in range(2):
            one = tokens[:, i : i + 1]
            got, changed = run.apply(run.variables | {"cache": ours}, one, mutable=["cache"])
            expected, wanted = model.apply(
                {"params": variables["params"], "cache": cache}, one, mutable=["cache"]
            )
            np.testing.assert_allclose(got, expected, atol=1e-5)
            ours, cache = changed["cache"], wanted["cache"]
        assert jax.tree.structure(ours) == jax.tree.structure(cache)
        got = run.apply(run.variables, tokens, method="second")
        assert np.array_equal(got, model.apply(variables, tokens, method="second"))


def test_what_cannot_be_done_is_refused(path: Path, variables: Any) -> None:
    with stream_linen(Compact(), path, reader="preadv") as run:
        with pytest.raises(UnsupportedError, match=r"layer block_0: got a call inside a JAX transformation"):
            jax.jit(run.apply)(run.variables, X)
        with pytest.raises(
            UnsupportedError, match=r"block block_0: got a call that draws random numbers, expected"
        ):
            run.apply(run.variables, X, do="dropout", rngs={"dropout": jax.random.key(0)})
        with pytest.raises(flax.errors.InvalidRngError):  # the user's own mistake
            run.apply(run.variables, X, do="dropout")
        with pytest.raises(
            UnsupportedError, match=r"streamed model: got capture_intermediates, expected no look"
        ):
            run.apply(run.variables, X, capture_intermediates=True)
        with pytest.raises(
            UnsupportedError, match=r"block block_0: got an argument or attribute that is no array"
        ):
            run.apply(run.variables, X, do={1, 2})
        run.apply(run.variables, X)  # the stream is as good as before
    with pytest.raises(StreamError, match=r"a call after close\(\)"):
        run.apply(run.variables, X)


def test_variables_that_cannot_be_saved(tmp_path: Path, variables: Any) -> None:
    with pytest.raises(
        InvalidInputError, match=r"save_linen: got variables with stem, block_0, .*expected a dict with"
    ):
        save_linen(tmp_path / "x", variables["params"], blocks="block_*")
    with pytest.raises(
        InvalidInputError, match="got no module of that path, expected some of stem, block_0, block_0"
    ):
        save_linen(tmp_path / "x", variables, blocks="layers_*")
    boxed = {"params": {"a": {"w": nn.Partitioned(X, names=(None, None))}, "b": {"w": X}}}
    with pytest.raises(
        InvalidInputError, match=r"got a box around .*, expected dicts of arrays; pass flax\.linen"
    ):
        save_linen(tmp_path / "x", boxed, blocks="*")
    assert not (tmp_path / "x").exists()
    endor.save(tmp_path / "y", [{"w": X}])
    with pytest.raises(
        InvalidInputError, match=r"got one written by endor_jax\.save, expected .*save_linen; write"
    ):
        stream_linen(Compact(), tmp_path / "y")
    assert "block_0" in variables["params"], "what was saved is left as it was"


def test_nested_stacks(tmp_path: Path) -> None:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(2):
                x = jnp.tanh(nn.Dense(WIDTH, name=f"layers_{i}")(x))
            return x

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Half(name="decoder")(Half(name="encoder")(x))

    model: Any = Both()
    variables = model.init(jax.random.key(0), X)
    manifest = save_linen(tmp_path / "x", variables, blocks=["encoder.layers_*", "decoder.layers_*"])
    assert [record.name for record in manifest.records[:3]] == [
        "encoder.layers_0",
        "encoder.layers_1",
        "decoder.layers_0",
    ]
    with stream_linen(model, tmp_path / "x") as run:
        assert isinstance(run, StreamedLinen)
        np.testing.assert_allclose(run.apply(run.variables, X), model.apply(variables, X), atol=1e-6)


def test_modules_in_fields_of_blocks(tmp_path: Path) -> None:
    class Around(nn.Module):
        inner: nn.Module
        more: tuple[nn.Module, ...]
        traces: ClassVar[list[int]] = [0]

        def __call__(self, x: Any) -> Any:
            self.traces[0] += 1
            for each in (self.inner, *self.more):
                x = x + jnp.tanh(each(x))
            return x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(3):
                inner = nn.Dense(WIDTH, parent=None, kernel_init=nn.initializers.normal(0.1))
                more = (nn.Dense(WIDTH, parent=None), nn.Dense(WIDTH, parent=None))
                x = Around(inner, more, name=f"block_{i}")(x)
            return x

    model: Any = Model()
    variables = model.init(jax.random.key(0), X)
    assert set(variables["params"]["block_0"]) == {"inner", "more_0", "more_1"}
    save_linen(tmp_path / "x", variables, blocks="block_*")
    with stream_linen(model, tmp_path / "x") as run:
        Around.traces[0] = 0
        y = run.apply(run.variables, X)
        assert Around.traces == [1]
    np.testing.assert_allclose(y, model.apply(variables, X), atol=1e-6)


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_blocks_that_the_model_transforms_are_refused(tmp_path: Path, transform: Any) -> None:
    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return jnp.tanh(nn.Dense(WIDTH)(x))

    class Model(nn.Module):
        transformed: bool

        @nn.compact
        def __call__(self, x: Any) -> Any:
            of = transform(Inside) if self.transformed else Inside
            return of(name="block_1")(of(name="block_0")(x))

    model: Any = Model(transformed=True)
    variables = model.init(jax.random.key(0), X)
    save_linen(tmp_path / "x", variables, blocks="block_*")
    with (
        stream_linen(model, tmp_path / "x") as run,
        pytest.raises(UnsupportedError, match=r"inside a transformation that the model makes \(nn\.remat"),
    ):
        run.apply(run.variables, X)
    plain: Any = Model(transformed=False)
    with stream_linen(plain, tmp_path / "x") as run:
        np.testing.assert_allclose(run.apply(run.variables, X), model.apply(variables, X), atol=1e-6)


class Halving(nn.Module):
    """Blocks that halve at random where there are keys, which a streamed block must not use."""

    drop: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = jnp.tanh(nn.Dense(WIDTH)(x))
        return x + nn.Dropout(0.5, deterministic=not (self.drop and self.has_rng("dropout")))(y)


class Student(nn.Module):
    """Two blocks, and beside them another model of the same names."""

    teacher: Any = None
    drop: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = x
        for i in range(2):
            y = Halving(self.drop, name=f"block_{i}")(y)
        if self.teacher is None:
            return y
        bound: Any = Student(parent=None).bind(self.teacher)
        jitted: Any = jax.jit(lambda x: Student(parent=None).apply(self.teacher, x))
        fresh: Any = Student(parent=None).init(jax.random.key(5), x)
        return y, bound(x), jitted(x), fresh


def test_a_model_inside_the_model_keeps_its_own_weights(tmp_path: Path) -> None:
    student: Any = Student()
    variables = student.init(jax.random.key(0), X)
    teacher = student.init(jax.random.key(1), X)
    save_linen(tmp_path / "x", variables, blocks="block_*")
    both: Any = Student(teacher)
    with stream_linen(both, tmp_path / "x") as run:
        got = run.apply(run.variables, X)
    y, bound, jitted, fresh = got
    np.testing.assert_allclose(y, student.apply(variables, X), atol=1e-6)
    for each in (bound, jitted):
        np.testing.assert_allclose(each, student.apply(teacher, X), atol=1e-6)
    wanted = student.init(jax.random.key(5), X)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fresh, wanted))


def test_keys_may_be_there_and_may_not_be_used(tmp_path: Path) -> None:
    student: Any = Student()
    variables = student.init(jax.random.key(0), X)
    save_linen(tmp_path / "x", variables, blocks="block_*")
    rngs = {"dropout": jax.random.key(0)}
    with stream_linen(student, tmp_path / "x") as run:
        np.testing.assert_allclose(
            run.apply(run.variables, X, rngs=rngs), student.apply(variables, X, rngs=rngs), atol=1e-6
        )
    with (
        stream_linen(Student(drop=True), tmp_path / "x") as run,
        pytest.raises(UnsupportedError, match=r"block block_0: got a call that draws random numbers"),
    ):
        run.apply(run.variables, X, rngs=rngs)


def test_a_block_around_a_module_of_the_model_is_refused(tmp_path: Path) -> None:
    class Around(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x + self.inner(nn.Dense(WIDTH)(x))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(2):
                x = Around(nn.Dense(WIDTH), name=f"block_{i}")(x)
            return x

    model: Any = Model()
    save_linen(tmp_path / "x", model.init(jax.random.key(0), X), blocks="block_*")
    with (
        stream_linen(model, tmp_path / "x") as run,
        pytest.raises(
            UnsupportedError, match=r"block_0: got a call that looks for a parameter where the blo"
        ),
    ):
        run.apply(run.variables, X)
