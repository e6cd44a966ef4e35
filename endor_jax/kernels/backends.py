"""Which implementation runs: a pure function of what was asked for and of where the arrays are.

`resolve` never looks at the tier a record came from: the same shapes on the same device always take the same
implementation, so that residency cannot change a logit. A named implementation runs or raises.
"""

from __future__ import annotations

from typing import Literal

from endor_jax.errors import UnsupportedError

Implementation = Literal["xla", "triton", "mosaic", "cpu"]


def implementations(platform: str, *, instruction_sets: tuple[str, ...]) -> tuple[Implementation, ...]:
    """What a JAX platform ("cpu", "gpu", "tpu") has, best first. A backend enters when its conformance suite
    passes.

    instruction_sets: those of the compiled extension on this machine (`native.instruction_sets()`), none if
    it was not built. Its portable code alone is slower than XLA's: then it runs only when asked for.
    """
    if platform != "cpu" or not instruction_sets:
        return ("xla",)
    return ("xla", "cpu") if instruction_sets == ("scalar",) else ("cpu", "xla")


def resolve(
    requested: Implementation | None, platform: str, *, instruction_sets: tuple[str, ...]
) -> Implementation:
    """The implementation to run on arrays of this platform.

    `None` takes the first available. Raises UnsupportedError for a named one that the platform lacks.
    """
    available = implementations(platform, instruction_sets=instruction_sets)
    if requested is None:
        return available[0]
    if requested not in available:
        unbuilt = requested == "cpu" and platform == "cpu"
        raise UnsupportedError(
            "implementation",
            got=f"{requested!r} on {platform}" + (", and it was not built" if unbuilt else ""),
            expected=f"one of {', '.join(available)}",
            fix="install g++ and endor_jax again" if unbuilt else "leave it out to take the best one",
        )
    return requested
