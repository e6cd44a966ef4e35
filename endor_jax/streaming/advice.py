"""Advice: what a plan and its prediction suggest to the user, in sentences. Pure.

Everything is tried out by planning again with another budget: no rule of thumb says what a budget would give.
"""

from __future__ import annotations

from dataclasses import dataclass

from endor_jax.errors import DoesNotFitError
from endor_jax.streaming.plan import Plan, make_plan
from endor_jax.streaming.prediction import Costs, predict
from endor_jax.streaming.sizes import format_size

SMALL_STEP = 1.1
"""A budget is changed by a little if it grows by this much at most ..."""
WORTH_SAYING = 1.15
"""... and that is worth saying if it makes generation this many times as fast."""


@dataclass(frozen=True)
class Free:
    """Bytes that are free for a plan, apart from its budgets: on a device, on the host.

    Where all are one memory, each figure is all of it.
    """

    device_bytes: int
    host_bytes: int


def advise(plan: Plan, costs: Costs, free: Free) -> tuple[str, ...]:
    """Sentences about what would be faster; none if nothing would, or nothing is known."""
    if plan.count("device") == len(plan.demands):
        return ()
    resident = _resident(plan, costs)
    needed = resident.device_bytes
    if plan.shares_memory:
        needed = plan.devices * needed + resident.host_bytes
    gain = predict(resident, costs).tokens_per_second / predict(plan, costs).tokens_per_second
    if needed <= free.device_bytes and gain >= WORTH_SAYING:
        taken, there = format_size(resident.device_bytes), format_size(_free_for_each(plan, free))
        return (
            f"Offloading is pointless: all records fit on {_device(plan)}, in {taken} of {there} that are "
            f"free. {_give(plan, resident, costs)}",
        )
    found = [_small_step(plan, costs, free), _unused_host(plan, costs, free), _beyond_page_cache(plan, costs)]
    return tuple(sentence for sentence in found if sentence is not None)


def _resident(plan: Plan, costs: Costs) -> Plan:
    """The plan with everything on the device, whatever that takes."""
    host = sum(size for _, size in plan.fixed.host)
    everything = sum(demand.buffer_bytes for demand in plan.demands)
    device = sum(size for _, size in plan.fixed.device) + everything
    return _with_budgets(plan, costs, device, host)


def _with_budgets(plan: Plan, costs: Costs, device_bytes: int, host_bytes: int) -> Plan:
    """The plan with other budgets, and with as much under way as they allow."""
    return make_plan(
        plan.demands,
        fixed=plan.fixed,
        device_budget_bytes=device_bytes,
        host_budget_bytes=host_bytes,
        reads=costs.reads,
        shares_memory=plan.shares_memory,
        staged=plan.staged,
        devices=plan.devices,
    )


def _device(plan: Plan) -> str:
    return "the device" if plan.devices == 1 else f"each of the {plan.devices} devices"


def _free_for_each(plan: Plan, free: Free) -> int:
    """Bytes that one device could be given. Where all memory is one, devices share it."""
    return free.device_bytes // (plan.devices if plan.shares_memory else 1)


def _give(plan: Plan, better: Plan, costs: Costs) -> str:
    """What to ask for, and what it gives."""
    now, then = predict(plan, costs).tokens_per_second, predict(better, costs).tokens_per_second
    budget = better.device_bytes
    return (
        f"With --device-memory {budget} ({format_size(budget)}) {then:.3g} tokens/s are predicted, "
        f"{now:.3g} as it is."
    )


def _small_step(plan: Plan, costs: Costs, free: Free) -> str | None:
    """A device budget a little larger, where that helps much."""
    more = min(int(SMALL_STEP * plan.device_budget_bytes), _free_for_each(plan, free))
    if more <= plan.device_budget_bytes:
        return None
    better = _with_budgets(plan, costs, more, plan.host_budget_bytes)
    gain = predict(better, costs).tokens_per_second / predict(plan, costs).tokens_per_second
    if gain < WORTH_SAYING:
        return None
    what = f"puts everything on {_device(plan)}" if not better.streamed else "would help much"
    if plan.read_bytes_per_pass and better.streamed and not better.read_bytes_per_pass:
        what = "makes reading from disk needless"
    extra = format_size(better.device_bytes - plan.device_budget_bytes)
    return f"{extra} more device memory {what}. {_give(plan, better, costs)}"


def _unused_host(plan: Plan, costs: Costs, free: Free) -> str | None:
    """Host memory that is free, and would hold records which are read in every pass."""
    if plan.shares_memory or not plan.read_bytes_per_pass or free.host_bytes <= plan.host_budget_bytes:
        return None
    try:
        better = _with_budgets(plan, costs, plan.device_budget_bytes, free.host_bytes)
    except DoesNotFitError:
        return None
    now, then = predict(plan, costs).tokens_per_second, predict(better, costs).tokens_per_second
    if then < WORTH_SAYING * now:
        return None
    return (
        f"Host memory has room that is not used: with --host-memory {better.host_bytes} "
        f"({format_size(better.host_bytes)}) {then:.3g} tokens/s are predicted, {now:.3g} as it is."
    )


def _beyond_page_cache(plan: Plan, costs: Costs) -> str | None:
    prediction = predict(plan, costs)
    if costs.cached or prediction.binding != "read":
        return None
    return (
        f"Every pass waits for {format_size(plan.read_bytes_per_pass)} from the disk itself: they are more "
        "than the page cache holds, or the reader goes past it. More memory, a faster disk, or more "
        "sequences at once (--batch-size) would help."
    )
