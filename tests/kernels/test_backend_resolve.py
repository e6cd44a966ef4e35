"""`resolve` is a table."""

from __future__ import annotations

import re

import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.kernels.backends import Implementation, implementations, resolve

PLATFORMS = ("cpu", "gpu", "tpu", "a platform to come")


@pytest.mark.parametrize(
    ("requested", "platform", "extension", "expected"),
    [
        (None, "cpu", True, "cpu"),
        (None, "cpu", False, "xla"),
        ("cpu", "cpu", True, "cpu"),
        ("xla", "cpu", True, "xla"),
        ("xla", "cpu", False, "xla"),
        *((None, platform, extension, "xla") for platform in PLATFORMS[1:] for extension in (True, False)),
        *(("xla", platform, extension, "xla") for platform in PLATFORMS[1:] for extension in (True, False)),
    ],
)
def test_what_runs(
    requested: Implementation | None, platform: str, extension: bool, expected: Implementation
) -> None:
    assert resolve(requested, platform, extension=extension) == expected


@pytest.mark.parametrize("extension", [True, False])
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("requested", ["triton", "mosaic", "cpu"])
def test_a_named_one_never_falls_back(requested: Implementation, platform: str, extension: bool) -> None:
    available = implementations(platform, extension=extension)
    if requested in available:
        assert resolve(requested, platform, extension=extension) == requested
        return
    message = f"implementation: got '{requested}' on {platform}"
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        resolve(requested, platform, extension=extension)
    assert f"expected one of {', '.join(available)}" in str(caught.value)


def test_where_the_extension_was_not_built_its_name_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"and it was not built, .* install g\+\+ and endor_jax again"):
        resolve("cpu", "cpu", extension=False)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_has_the_twin(platform: str) -> None:
    assert all("xla" in implementations(platform, extension=extension) for extension in (True, False))
