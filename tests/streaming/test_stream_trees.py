"""Trees of every rank and layers of several kinds: saved, streamed from disk and expanded, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import endor_jax as endor
from endor_jax.format.layout import FieldLayout
from endor_jax.format.tree import named_leaves

PLENTY = 2**40
CONVOLUTION = ("NHWC", "HWIO", "NHWC")


def kernel(*shape: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    random = np.random.default_rng(seed)
    dense = random.normal(0, 0.1, shape).astype(dtype)
    return np.where(random.random(shape) < 0.5, dense, dense.dtype.type(0))


def vision_layer(seed: int, dtype: Any = np.float32) -> dict[str, Any]:
    """A kernel of each rank: dense, attention (in, heads, width), convolution (height, width, in, out)."""
    return {
        "scale": kernel(32, seed=seed + 9, dtype=dtype),
        "dense": {
            "kernel": kernel(32, 160, seed=seed, dtype=dtype),
            "back": [kernel(160, 32, seed=seed + 1)],
        },
        "attention": (kernel(32, 4, 40, seed=seed + 2, dtype=dtype), kernel(4, 40, 32, seed=seed + 3)),
        "convolution": kernel(3, 3, 32, 32, seed=seed + 4, dtype=dtype),
        "several": kernel(2, 3, 2, 5, 80, seed=seed + 5, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_kernels_of_rank_1_to_5_come_back_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    layers = [vision_layer(seed, dtype) for seed in range(0, 40, 10)]
    manifest = endor.save(tmp_path / "x", layers)
    assert len(manifest.signatures) == 1
    places = dict(manifest.signatures[0].layout.tensors)
    compressed = {len(place.shape) for place in places.values() if isinstance(place, FieldLayout)}
    assert compressed == {2, 3, 4, 5}
    buffer = max(record.buffer_bytes for record in manifest.records)

    def layer(params: Any, x: Any, state: Any) -> Any:
        return x, params

    device = manifest.signatures[0].layout.dense_bytes
    with endor.stream(layer, tmp_path / "x", device_memory=device, host_memory=3 * buffer, depth=1) as run:
        assert run.plan.count("disk") == len(layers)
        for _ in range(2):
            _, seen = run(0)
            for got, expected in zip(seen, layers, strict=True):
                assert jax.tree.structure(got) == jax.tree.structure(expected)
                for name, leaf in named_leaves(got).items():
                    wanted = named_leaves(expected)[name]
                    assert leaf.dtype == wanted.dtype
                    assert np.asarray(leaf).tobytes() == wanted.tobytes(), name
    encoded = endor.encode(layers[0], select=lambda name, leaf: leaf.ndim > 1)
    back = jax.jit(endor.expand)(encoded)
    for got, expected in zip(jax.tree.leaves(back), jax.tree.leaves(layers[0]), strict=True):
        assert np.asarray(got).tobytes() == expected.tobytes()


def vision_stack() -> list[Any]:
    """Layers of three kinds; what a layer is, its tree says."""
    stem = {"stem": {"patch": kernel(4, 4, 3, 96, seed=0)}}
    mixing = [{"mix": {"convolution": kernel(3, 3, 96, 96, seed=seed)}} for seed in (1, 2, 7)]
    dense = [{"mlp": {"up": kernel(96, 192, seed=s), "down": kernel(192, 96, seed=s + 1)}} for s in (3, 5)]
    return [stem, mixing[0], dense[0], mixing[1], dense[1], mixing[2]]


def vision(params: Any, x: jax.Array, state: Any) -> Any:
    """Which kind of layer it is, is known when it is compiled: trees are structure, not values."""
    if "stem" in params:
        kernel = params["stem"]["patch"]
        return lax.conv_general_dilated(x, kernel, (4, 4), "VALID", dimension_numbers=CONVOLUTION), state
    if "mix" in params:
        kernel = params["mix"]["convolution"]
        return x + lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=CONVOLUTION), state
    return x + jnp.tanh(x @ params["mlp"]["up"]) @ params["mlp"]["down"], state


def encoder_decoder() -> list[Any]:
    """The encoder's layers and the decoder's, one stack; x holds what both work on."""

    def own(seed: int) -> np.ndarray:
        return kernel(64, 64, seed=seed)

    encoder = [{"encoder": {"own": own(seed)}} for seed in (0, 1, 2)]
    return [*encoder, *({"decoder": {"own": own(s), "other": own(s + 1)}} for s in (3, 5))]


def translate(params: Any, x: Any, state: Any) -> Any:
    if "encoder" in params:
        return x | {"memory": x["memory"] + jnp.tanh(x["memory"] @ params["encoder"]["own"])}, state
    decoder = params["decoder"]
    y = x["y"] + jnp.tanh(x["y"] @ decoder["own"]) + x["memory"].mean(1, keepdims=True) @ decoder["other"]
    return x | {"y": y}, state


IMAGES = np.random.default_rng(3).normal(size=(2, 16, 16, 3)).astype(np.float32)
SENTENCES = np.random.default_rng(4).normal(size=(2, 5, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("layers", "layer", "x", "kinds"),
    [
        (vision_stack(), vision, IMAGES, 3),
        (encoder_decoder(), translate, {"memory": SENTENCES, "y": -SENTENCES[:, :3]}, 2),
    ],
    ids=["vision", "encoder-decoder"],
)
def test_unequal_layers_in_one_stack(tmp_path: Path, layers: Any, layer: Any, x: Any, kinds: int) -> None:
    manifest = endor.save(tmp_path / "x", layers)
    assert len(manifest.signatures) == kinds
    traces = []

    def counted(params: Any, x: Any, state: Any) -> Any:
        traces.append(list(params))
        return layer(params, x, state)

    expected, step = x, jax.jit(layer)
    for params in layers:
        expected, _ = step(params, expected, None)
    device = max(signature.layout.dense_bytes for signature in manifest.signatures)
    buffer = max(record.buffer_bytes for record in manifest.records)
    with endor.stream(counted, tmp_path / "x", device_memory=device, host_memory=3 * buffer, depth=1) as run:
        assert run.plan.count("disk") > 0
        for _ in range(2):
            got, _ = run(x)
            for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert len(traces) == kinds
