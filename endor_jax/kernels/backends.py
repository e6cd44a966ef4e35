"""Which implementation runs: a pure function of what was asked for and of where the arrays are.

`resolve` never looks at the tier a record came from: the same shapes on the same device always take the same
implementation, so that residency cannot change a logit. A named implementation runs or raises.
"""

from __future__ import annotations

from typing import Literal

from endor_jax.errors import UnsupportedError

Implementation = Literal["xla", "triton", "mosaic", "cpu"]

IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {"cpu": ("xla",), "gpu": ("xla",), "tpu": ("xla",)}
"""Per JAX platform, what is available, best first. A backend enters when its conformance suite passes."""


def resolve(requested: Implementation | None, platform: str) -> Implementation:
    """The implementation to run on arrays of this platform ("cpu", "gpu", "tpu").

    `None` takes the first available. Raises UnsupportedError for a named one that the platform lacks.
    """
    available = IMPLEMENTATIONS.get(platform, ("xla",))
    if requested is None:
        return available[0]
    if requested not in available:
        raise UnsupportedError(
            "implementation",
            got=f"{requested!r} on {platform}",
            expected=f"one of {', '.join(available)}",
            fix="leave it out to take the best one",
        )
    return requested
