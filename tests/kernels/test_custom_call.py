"""The extension's custom calls: what they refuse, and what happens where the extension was not built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import native
from endor_jax.errors import UnsupportedError
from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import cpu as expand_cpu
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear import cpu as linear_cpu
from endor_jax.kernels.linear import linear

needs_extension = pytest.mark.skipif(not native.available(), reason="the extension was not built")
WEIGHT = np.random.default_rng(0).normal(size=(40, 1100)).astype(np.float32)


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    caches = (native.available, native.library, native.instruction_sets)
    monkeypatch.setattr(native, "path", lambda: tmp_path / native.LIBRARY)
    for cache in caches:
        cache.cache_clear()
    jax.clear_caches()  # or what was compiled before would run
    yield
    for cache in caches:
        cache.cache_clear()
    jax.clear_caches()


def test_without_the_extension_xla_serves(unbuilt: None) -> None:
    assert native.instruction_sets() == ()
    tensor = encode_array(WEIGHT, "packed:3")
    np.testing.assert_array_equal(expand(tensor), WEIGHT)
    x = jnp.ones((2, 1100))
    np.testing.assert_allclose(linear(x, tensor), x @ WEIGHT.T, rtol=1e-4, atol=1e-4)


def test_without_the_extension_its_name_is_refused(unbuilt: None) -> None:
    tensor = encode_array(WEIGHT, "packed:3")
    for call in (
        lambda: expand(tensor, implementation="cpu"),
        lambda: linear(jnp.ones((2, 1100)), tensor, implementation="cpu"),
    ):
        with pytest.raises(UnsupportedError, match=r"'cpu' on cpu, and it was not built.*install g\+\+"):
            call()
    with pytest.raises(
        UnsupportedError, match=r"compiled extension: got no .*install g\+\+ and endor_jax again"
    ):
        native.library()


def test_a_library_that_cannot_be_loaded_is_one_clear_error(unbuilt: None, tmp_path: Path) -> None:
    (tmp_path / native.LIBRARY).write_bytes(b"no library")
    with pytest.raises(UnsupportedError, match="a library built for this system; install"):
        native.library()


@needs_extension
@pytest.mark.parametrize("name", native.instruction_sets())
def test_a_forced_instruction_set_runs(name: str) -> None:
    tensor = encode_array(WEIGHT, "packed:3")
    expanded = jax.jit(lambda t: expand_cpu.expand(t, instruction_set=name))(tensor)
    np.testing.assert_array_equal(np.asarray(expanded), WEIGHT)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1100)), jnp.float32)
    product = jax.jit(lambda x, t: linear_cpu.linear(x, t, jnp.float32, instruction_set=name))(x, tensor)
    np.testing.assert_allclose(product, np.asarray(x) @ WEIGHT.T, rtol=1e-4, atol=1e-4)


@needs_extension
def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    tensor = encode_array(WEIGHT, "packed:3")
    with pytest.raises(
        UnsupportedError, match=r"instruction set: got 'avx1024', expected .*scalar; leave it out"
    ):
        expand_cpu.expand(tensor, instruction_set="avx1024")


@needs_extension
def test_a_part_that_is_too_short_is_an_error() -> None:
    """To the extension too, which the public functions would not let it reach."""
    tensor = encode_array(WEIGHT, "packed:3")
    short = SparseTensor((jnp.asarray(tensor.parts[0][:500]),), tensor.layout)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the part is shorter than its layout says"):
        expand_cpu.expand(short).block_until_ready()


@needs_extension
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 16, 17, 32])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_does_not_depend_on_the_others(rows: int, dtype: str) -> None:
    """With AVX-512; the others order their sums by how many rows there are."""
    if native.instruction_sets()[0] != "avx512":
        pytest.skip("the processor has no AVX-512")
    tensor = encode_array(WEIGHT.astype(dtype), "packed:3")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, 1100)), dtype)
    product = jax.jit(lambda x: linear(x, tensor, output_dtype=jnp.dtype("float32"), implementation="cpu"))
    together = np.asarray(product(x))
    for row in (0, rows - 1):
        np.testing.assert_array_equal(together[row], np.asarray(product(x[row : row + 1]))[0])
