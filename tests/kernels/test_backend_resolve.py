"""`resolve` is a table."""

from __future__ import annotations

import re

import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.kernels.backends import Implementation, implementations, resolve

PLATFORMS = ("cpu", "gpu", "tpu", "a platform to come")
FAST, PORTABLE, UNBUILT = ("avx2", "scalar"), ("scalar",), ()
"""What the extension has: vector instructions, portable code only, nothing."""
MACHINES = (FAST, PORTABLE, UNBUILT)


@pytest.mark.parametrize(
    ("requested", "platform", "instruction_sets", "expected"),
    [
        (None, "cpu", FAST, "cpu"),
        (None, "cpu", PORTABLE, "xla"),
        (None, "cpu", UNBUILT, "xla"),
        ("cpu", "cpu", FAST, "cpu"),
        ("cpu", "cpu", PORTABLE, "cpu"),
        *(("xla", "cpu", machine, "xla") for machine in MACHINES),
        *((None, platform, machine, "xla") for platform in PLATFORMS[1:] for machine in MACHINES),
        *(("xla", platform, machine, "xla") for platform in PLATFORMS[1:] for machine in MACHINES),
    ],
)
def test_what_runs(
    requested: Implementation | None,
    platform: str,
    instruction_sets: tuple[str, ...],
    expected: Implementation,
) -> None:
    assert resolve(requested, platform, instruction_sets=instruction_sets) == expected


@pytest.mark.parametrize("instruction_sets", MACHINES)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("requested", ["triton", "mosaic", "cpu"])
def test_a_named_one_never_falls_back(
    requested: Implementation, platform: str, instruction_sets: tuple[str, ...]
) -> None:
    available = implementations(platform, instruction_sets=instruction_sets)
    if requested in available:
        assert resolve(requested, platform, instruction_sets=instruction_sets) == requested
        return
    message = f"implementation: got '{requested}' on {platform}"
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        resolve(requested, platform, instruction_sets=instruction_sets)
    assert f"expected one of {', '.join(available)}" in str(caught.value)


def test_where_the_extension_was_not_built_its_name_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"and it was not built, .* install g\+\+ and endor_jax again"):
        resolve("cpu", "cpu", instruction_sets=UNBUILT)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_has_the_twin(platform: str) -> None:
    assert all("xla" in implementations(platform, instruction_sets=machine) for machine in MACHINES)
