"""What generating takes of this process's memory in all, said before anything is loaded."""

from __future__ import annotations

from endor_jax.memory import peak_host_bytes, resident_bytes
from endor_jax.streaming.plan import Plan

ALLOWANCE_BYTES = 288 * 2**20
"""Beside the plan: XLA's compiler and what it made, the tokenizer, threads, what malloc keeps for later.
Measured: 60 to 210 MiB."""


def expected_peak_bytes(*plans: Plan) -> int:
    """A bound on the peak resident memory of this process: what it has now, and what the plans take.

    More than one where several stages of a pipeline are in this process. Where device and host are one
    memory, the plan's bytes on the device count too. Pages that the system caches do not.
    """
    planned = sum(
        plan.host_bytes + (plan.devices * plan.device_bytes if plan.shares_memory else 0) for plan in plans
    )
    return max(peak_host_bytes(), resident_bytes() + planned + ALLOWANCE_BYTES)
