"""`expand_on_host` gives what `decode` gives, with the extension and without."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from endor_jax.arrays import bits_of
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.kernels.backends import implementations
from endor_jax.kernels.expand import on_host
from endor_jax.kernels.place import cpu_place
from tests import shapes
from tests.kernels.test_expand_conformance import stored


def refused(*_: object, **__: object) -> None:
    raise RuntimeError("Unknown backend cpu")


def only_xla(*_: object) -> tuple[str, ...]:
    return ("xla",)


@pytest.mark.parametrize(
    ("module", "name", "replaced", "decoded"),
    [
        (on_host, "expand", on_host.expand, False),
        (on_host, "implementations", only_xla, True),
        (jax, "local_devices", refused, True),
    ],
    ids=["extension", "not built", "no CPU for JAX"],
)
def test_it_gives_what_decode_gives(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, replaced: Callable[..., object], decoded: bool
) -> None:
    if implementations(cpu_place())[0] != "cpu" and not decoded:
        pytest.skip("no extension for this processor")
    monkeypatch.setattr(module, name, replaced)
    calls = []
    monkeypatch.setattr(on_host, "decode", lambda tensor: calls.append(tensor) or decode(tensor))
    for codec, shape in (("packed:2", "segment_tail"), ("int8", "rank_3"), ("dense-raw", "word_tail")):
        _, source = stored(shapes.BY_NAME[shape], "bfloat16", codec)
        tensor = encode_array(source, codec)
        got = on_host.expand_on_host(tensor)
        assert isinstance(got, np.ndarray)
        expected = decode(tensor)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(bits_of(got), bits_of(expected))
    assert len(calls) == (3 if decoded else 0)
