"""`resolve` is a table."""

from __future__ import annotations

import re

import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.kernels.backends import IMPLEMENTATIONS, Implementation, resolve


@pytest.mark.parametrize(
    ("requested", "platform", "expected"),
    [
        (None, "cpu", "xla"),
        (None, "gpu", "xla"),
        (None, "tpu", "xla"),
        (None, "a platform to come", "xla"),
        ("xla", "cpu", "xla"),
        ("xla", "gpu", "xla"),
        ("xla", "tpu", "xla"),
        ("xla", "a platform to come", "xla"),
    ],
)
def test_what_runs(requested: Implementation | None, platform: str, expected: Implementation) -> None:
    assert resolve(requested, platform) == expected


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("requested", ["triton", "mosaic", "cpu"])
def test_a_named_one_never_falls_back(requested: Implementation, platform: str) -> None:
    if requested in IMPLEMENTATIONS[platform]:
        assert resolve(requested, platform) == requested
        return
    message = f"implementation: got '{requested}' on {platform}, expected one of xla"
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        resolve(requested, platform)


def test_every_platform_has_the_twin() -> None:
    assert all("xla" in available for available in IMPLEMENTATIONS.values())
