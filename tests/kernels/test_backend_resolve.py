"""`resolve` is a table."""

from __future__ import annotations

import re

import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.kernels.backends import Implementation, Place, implementations, resolve

FAST, PORTABLE, UNBUILT = ("avx2", "scalar"), ("scalar",), ()
"""What the extension has: vector instructions, portable code only, nothing."""
PROCESSORS = [Place("cpu", instruction_sets=machine) for machine in (FAST, PORTABLE, UNBUILT)]
OLD = {"V100": (7, 0), "T4": (7, 5)}
CUDA = {
    "A100": (8, 0),
    "RTX 3090": (8, 6),
    "RTX 4090": (8, 9),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX 5090": (12, 0),
}
TRITON = [Place("gpu", capability) for capability in CUDA.values()]
OTHERS = [
    *(Place("gpu", capability) for capability in OLD.values()),
    Place("gpu"),  # ROCm
    Place("tpu"),
    Place("a platform to come", instruction_sets=FAST),
]
PLACES = [*PROCESSORS, *TRITON, *OTHERS]


@pytest.mark.parametrize(
    ("requested", "place", "expected"),
    [
        (None, PROCESSORS[0], "cpu"),
        (None, PROCESSORS[1], "xla"),
        (None, PROCESSORS[2], "xla"),
        ("cpu", PROCESSORS[0], "cpu"),
        ("cpu", PROCESSORS[1], "cpu"),
        *((requested, place, "triton") for place in TRITON for requested in (None, "triton")),
        *((None, place, "xla") for place in OTHERS),
        *(("xla", place, "xla") for place in PLACES),
    ],
    ids=str,
)
def test_what_runs(requested: Implementation | None, place: Place, expected: Implementation) -> None:
    assert resolve(requested, place) == expected


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("requested", ["triton", "mosaic", "cpu"])
def test_a_named_one_never_falls_back(requested: Implementation, place: Place) -> None:
    available = implementations(place)
    if requested in available:
        assert resolve(requested, place) == requested
        return
    message = f"implementation: got '{requested}' on {place.platform}"
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        resolve(requested, place)
    assert f"expected one of {', '.join(available)}" in str(caught.value)


def test_where_the_extension_was_not_built_its_name_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"and it was not built, .* install g\+\+ and endor_jax again"):
        resolve("cpu", PROCESSORS[2])


def test_a_device_too_old_for_triton_is_told_so() -> None:
    with pytest.raises(UnsupportedError, match=r"'triton' on gpu of compute capability 7\.5, below 8\.0,"):
        resolve("triton", Place("gpu", OLD["T4"]))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_mosaic_is_nowhere_before_a_device_has_shown_it_right(place: Place) -> None:
    with pytest.raises(UnsupportedError, match=r"'mosaic' on .*: for Hopper it is written, and no"):
        resolve("mosaic", place)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_place_has_the_twin(place: Place) -> None:
    assert "xla" in implementations(place)
