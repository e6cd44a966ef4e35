"""What only a CUDA device can show: `pytest -m gpu` on a machine that has one.

The conformance suites of tests/kernels are part of it there (`tests/places.py`): here is what they leave out.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import bits_of
from endor_jax.bench.device_grid import EXPAND_CODECS
from endor_jax.bench.device_matrices import device_matrix, measured_sparsity
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.format.quantise import dequantise, quantise
from endor_jax.kernels.backends import Implementation, implementations
from endor_jax.kernels.place import default_place
from endor_jax.memory import aligned_buffer
from endor_jax.streaming.transfer import put
from tests import shapes
from tests.tiny_models import LLAMA, write_tiny

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> jax.Device:
    return jax.devices("gpu")[0]


IMPLEMENTATIONS: tuple[Implementation, ...] = ("triton", "xla")


@pytest.mark.parametrize("codec", [*EXPAND_CODECS, "dense-raw", "dense-int4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_layer_of_a_large_model_expands_bitwise(
    gpu: jax.Device, implementation: Implementation, dtype: str, codec: str
) -> None:
    """More programs than the device has processors, several segments a row, escapes."""
    sparsity = measured_sparsity(codec, 0.5)
    matrix = device_matrix((4096, 11008), codec=codec, sparsity=sparsity, dtype=dtype)
    expand = jax.jit(functools.partial(endor.expand, implementation=implementation))
    expanded = np.asarray(expand(jax.device_put(matrix.tensor, gpu)))
    np.testing.assert_array_equal(bits_of(expanded), bits_of(matrix.dense))


@pytest.mark.parametrize("codec", ["raw", "dense-packed:3", "packed:2"])
@pytest.mark.parametrize("name", ["square", "segment_tail", "rank_4"])
def test_the_best_implementation_expands_bitwise(gpu: jax.Device, name: str, codec: str) -> None:
    """The suites of tests/kernels name one each; this is what is taken where none is named."""
    tensor = encode_array(shapes.weights(shapes.BY_NAME[name], "bfloat16"), codec)
    expanded = np.asarray(jax.jit(endor.expand)(jax.device_put(tensor, gpu)))
    assert expanded.tobytes() == decode(tensor).tobytes()


def test_what_is_compiled_is_tritons_kernel_where_none_is_named(gpu: jax.Device) -> None:
    if implementations(default_place())[0] != "triton":
        pytest.skip("a device that Triton does not compile for")
    tensor = jax.device_put(encode_array(np.eye(256, dtype=np.float32), "raw"), gpu)
    for implementation, expected in ((None, 1), ("triton", 1), ("xla", 0)):
        expand = jax.jit(functools.partial(endor.expand, implementation=implementation))
        text = expand.lower(tensor).compile().as_text()
        assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == expected, implementation


@pytest.mark.parametrize("codec", ["int8", "dense-int4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_rounding_of_elements_is_not_left_out_of_a_product(
    gpu: jax.Device, dtype: str, codec: str
) -> None:
    """Unit vectors of float32 give the elements themselves: rounded, though they are widened at once."""
    array = shapes.weights(shapes.BY_NAME["square"], dtype, specials=False)
    quantised = quantise(array, 8 if "8" in codec else 4)
    tensor = jax.device_put(encode_array(quantised, codec), gpu)
    got = jax.jit(endor.linear)(jax.device_put(jnp.eye(64, dtype=jnp.float32), gpu), tensor)
    np.testing.assert_array_equal(np.asarray(got).T, dequantise(quantised).astype(np.float32))


def test_linear_of_float32_keeps_its_precision(gpu: jax.Device) -> None:
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(512, 512)).astype(np.float32), random.normal(size=(4, 512))
    y = endor.linear(
        jax.device_put(x.astype(np.float32), gpu), jax.device_put(encode_array(weight, "raw"), gpu)
    )
    assert np.abs(np.asarray(y) - x @ weight.T.astype(np.float64)).max() < 1e-3


def test_slot_may_be_written_again_once_its_transfer_is_done(gpu: jax.Device) -> None:
    slot = aligned_buffer(64 << 20)
    for value in range(8):
        slot[:] = value
        words = jax.block_until_ready(put(slot, slot.nbytes, gpu))
        slot[:] = 0xFF
        assert int(jnp.max(words & 0xFF)) == int(jnp.min(words & 0xFF)) == value


def test_generation_is_bitwise_equal_resident_and_streamed(gpu: jax.Device, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 9}, tokenizer=True)
    endor.convert(source, tmp_path / "dst", dtype="bfloat16", prune="magnitude", sparsity=0.5)
    ids = [list(range(40))]
    with endor.load(tmp_path / "dst", device_memory="1GiB", host_memory="1GiB") as model:
        assert model.plan.count("device") == len(model.plan.tiers)
        resident, tokens = model.logits(ids), model.complete(ids[0], max_tokens=8)
        assert tokens.statistics.peak_device_bytes
        fixed = sum(size for _, size in model.plan.fixed.device)
    with endor.load(tmp_path / "dst", device_memory=fixed + 200_000, host_memory="1GiB") as model:
        assert model.plan.count("device") < len(model.plan.tiers)
        assert model.logits(ids).tobytes() == resident.tobytes()
        assert model.complete(ids[0], max_tokens=8).token_ids == tokens.token_ids
