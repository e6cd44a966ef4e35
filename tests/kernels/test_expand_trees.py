"""Compressed leaves in a user's own tree, inside the user's own jit: expanded, multiplied, differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import endor_jax as endor
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor

WIDTH = 64


def kernel(*shape: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    dense = random.normal(0, 0.2, shape).astype(np.float32)
    return np.where(random.random(shape) < 0.5, dense, np.float32(0))


X = np.random.default_rng(9).normal(size=(3, WIDTH)).astype(np.float32)
DENSE: dict[str, Any] = {
    "attention": {"kernel": kernel(WIDTH, 4, 16), "bias": np.ones((4, 16), np.float32)},
    "mlp": [kernel(WIDTH, WIDTH, seed=1), (kernel(3, 3, 32, 33, seed=2),)],
    "steps": 3,
}


def apply(params: Any, x: Any) -> jax.Array:
    attention = params["attention"]
    heads = jnp.einsum("bi,ihd->bhd", x, attention["kernel"]) + attention["bias"][None]
    return jnp.tanh(heads.reshape(x.shape)) @ params["mlp"][0] + params["mlp"][1][0].sum()


def compressed() -> Any:
    return endor.encode(DENSE, select=lambda name, leaf: getattr(leaf, "size", 0) >= 4096)


def test_a_tree_is_expanded_inside_jit_bit_for_bit() -> None:
    tree = compressed()
    assert sum(isinstance(leaf, SparseTensor) for leaf in jax.tree.leaves(tree, is_leaf=is_sparse)) == 3
    for back in (endor.expand(tree), jax.jit(endor.expand)(tree)):
        assert jax.tree.structure(back) == jax.tree.structure(DENSE)
        for got, expected in zip(jax.tree.leaves(back), jax.tree.leaves(DENSE), strict=True):
            assert np.asarray(got).tobytes() == np.asarray(expected, np.asarray(got).dtype).tobytes()
    assert endor.expand(tree)["attention"]["bias"] is DENSE["attention"]["bias"]
    y = jax.jit(lambda tree, x: apply(endor.expand(tree), x))(tree, X)
    assert np.asarray(y).tobytes() == np.asarray(jax.jit(apply)(DENSE, X)).tobytes()


def is_sparse(node: Any) -> bool:
    return isinstance(node, SparseTensor)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint])  # pyright: ignore[reportPrivateImportUsage]
def test_gradient_with_respect_to_activations_and_to_what_is_dense(wrap: Any) -> None:
    tree = compressed()

    def loss(x: Any, bias: Any, params: Any) -> Any:
        params = params | {"attention": params["attention"] | {"bias": bias}}
        return wrap(lambda x, params: apply(endor.expand(params), x))(x, params).sum()

    bias = DENSE["attention"]["bias"]
    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(X, bias, tree)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(X, bias, DENSE)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_vmap_over_activations() -> None:
    tree = compressed()
    got = jax.jit(jax.vmap(lambda x, tree: apply(endor.expand(tree), x), in_axes=(0, None)))(X[:, None], tree)
    np.testing.assert_allclose(got[:, 0], apply(DENSE, X), rtol=1e-5, atol=1e-5)


def stacked(path: Path, layers: list[Any]) -> Record:
    """All layers of a checkpoint of one signature, in memory: (layers, words)."""
    endor.save(path, layers)
    with endor.open(path) as checkpoint:
        records = [checkpoint.read_record(record) for record in checkpoint.manifest.records]
    longest = max(record.words[0].shape[0] for record in records)
    padded = [jnp.pad(jnp.asarray(r.words[0]), (0, longest - r.words[0].shape[0])) for r in records]
    return Record((jnp.stack(padded),), records[0].layout)


def test_scan_and_vmap_over_stacked_records(tmp_path: Path) -> None:
    layers = [{"up": kernel(WIDTH, 96, seed=i), "down": kernel(96, WIDTH, seed=i + 9)} for i in range(4)]
    record = stacked(tmp_path / "x", layers)

    def layer(x: Any, params: Any) -> Any:
        return x + jnp.tanh(x @ params["up"]) @ params["down"], None

    def whole(x: Any, record: Record) -> Any:
        return lax.scan(lambda x, one: layer(x, endor.expand(one)), x, record)[0]

    expected = lax.scan(layer, jnp.asarray(X), jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))[0]
    np.testing.assert_allclose(jax.jit(whole)(X, record), expected, rtol=1e-5, atol=1e-5)
    dense = jax.jit(jax.vmap(endor.expand))(record)
    for i, layer_ in enumerate(layers):
        assert all(np.asarray(dense[name][i]).tobytes() == layer_[name].tobytes() for name in layer_)
    with pytest.raises(InvalidInputError, match=r"got a part of dtype uint32 and shape \(4, .*use jax\.vmap"):
        endor.expand(record)
