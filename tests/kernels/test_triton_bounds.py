"""Nothing that a part holds makes Triton's kernels read or write outside their arrays.

Pallas' interpreter clips indices, and a GPU reads what is there: here every index is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton as pltriton

from endor_jax.format.encode import encode_array
from endor_jax.format.layout import FieldLayout
from endor_jax.format.quantise import quantise
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import triton as expand_triton
from endor_jax.kernels.linear import triton as linear_triton
from tests import shapes
from tests.places import QUICKLY
from tests.shapes import NamedShape

SHAPE = NamedShape("tails", (5, 1300), 0.5)


class Accesses:
    """Every access of a kernel that is traced while this is watching, when the kernel runs."""

    def __init__(self) -> None:
        self.seen, self.outside = 0, []

    def _look(self, size: int, least: Any, most: Any) -> None:
        self.seen += 1
        if least < 0 or most >= size:
            self.outside.append((size, int(least), int(most)))

    def watching(self, access: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(access)
        def watched(ref: Any, *arguments: Any, mask: Any = None, **named: Any) -> Any:
            (index,) = ref.transforms[-1].indices
            there = index if mask is None else jnp.where(mask, index, 0)
            jax.debug.callback(functools.partial(self._look, ref.ref.shape[0]), there.min(), there.max())
            return access(ref, *arguments, mask=mask, **named)

        return watched


@pytest.mark.parametrize(
    ("kernel", "codec"),
    [
        ("expand", "packed:1"),
        ("expand", "int4"),
        ("expand", "dense-raw"),
        ("vector", "packed:1"),
        ("tensor", "packed:1"),
    ],
)
def test_damage_leads_nowhere_outside(monkeypatch: pytest.MonkeyPatch, kernel: str, codec: str) -> None:
    accesses = Accesses()
    monkeypatch.setattr(pltriton, "load", accesses.watching(pltriton.load))
    monkeypatch.setattr(pltriton, "store", accesses.watching(pltriton.store))
    array = shapes.weights(SHAPE, "bfloat16", specials=False)
    tensor = encode_array(quantise(array, 4) if codec == "int4" else array, codec)
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    run = jax.jit(functools.partial(_run, kernel, layout), compiler_options=QUICKLY)
    random = np.random.default_rng(0)
    places = [
        slice(0, 0),
        slice(0, 2),
        *(slice(each.start, each.stop) for each in layout.sections),
        slice(None),
    ]
    for place in places:
        for fill in (None, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            words = np.array(tensor.parts[0])
            noise = random.integers(0, 2**32, len(words[place]), dtype=np.uint64).astype(np.uint32)
            words[place] = noise if fill is None else fill
            run(jnp.asarray(words)).block_until_ready()
    jax.effects_barrier()
    assert accesses.seen > 1000
    assert accesses.outside == []


def _run(kernel: str, layout: FieldLayout, words: jax.Array) -> jax.Array:
    tensor = SparseTensor((words,), layout)
    if kernel == "expand":
        return expand_triton.expand(tensor, interpret=True)
    x = jnp.ones((2, 1300), jnp.bfloat16)
    body: linear_triton.Body = "vector" if kernel == "vector" else "tensor"
    return linear_triton.linear(x, tensor, "bfloat16", body=body, interpret=True)


def test_an_access_outside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the check itself: a part that is too short, which the public functions refuse."""
    accesses = Accesses()
    monkeypatch.setattr(pltriton, "load", accesses.watching(pltriton.load))
    tensor = encode_array(shapes.weights(SHAPE, "bfloat16", specials=False), "packed:1")
    assert isinstance(tensor.layout, FieldLayout)
    _run("expand", tensor.layout, jnp.asarray(tensor.parts[0][:200])).block_until_ready()
    jax.effects_barrier()
    assert accesses.outside
