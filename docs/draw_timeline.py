"""Draws docs/timeline.svg: what disk, link and device do over two passes, by the executor's own schedule.

`python docs/draw_timeline.py` writes the picture; tests/test_documents.py compares it with the committed one.
The order of actions comes from endor_jax.streaming.schedule. When they happen follows from the durations
below and from what the executor waits for (`Executor._do`); the unit of time is arbitrary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from endor_jax.streaming.plan import DEPTH, Demand, FixedCosts, Plan, Tier
from endor_jax.streaming.schedule import Action, make_schedule

TIERS: tuple[Tier, ...] = ("disk", "host", "disk", "device", "disk", "disk")
READ, PUT, STEP, SAMPLE = 1.7, 2.0, 0.9, 0.3
PASSES, DRAWN = 3, 26.0  # passes that are computed; time that is drawn
DEMANDS = tuple(Demand(f"layers.{i}", 4096, 4096, 1, 4096) for i in range(len(TIERS)))
PLAN = Plan(DEMANDS, TIERS, FixedCosts(), DEPTH, 0, 0)
STREAMED, SLOTS = PLAN.streamed, PLAN.slots
PICTURE = Path(__file__).with_name("timeline.svg")


@dataclass(frozen=True)
class Busy:
    """From when to when something works on a record, and for which pass (from 1)."""

    row: str
    record: int
    turn: int
    start: float
    end: float


def overlapped(turn: int, plan: Plan = PLAN) -> Iterable[Action]:
    """The executor's schedule of one pass. Reads and waits are simulated: they follow from the rest."""
    schedule = make_schedule(plan)
    actions = (*(schedule.prologue if turn == 1 else ()), *schedule.one_pass)
    return [action for action in actions if action.kind in ("put", "step")]


def one_after_another(turn: int) -> Iterable[Action]:
    """For comparison: the next transfer is issued behind each step."""
    actions = list(overlapped(turn, replace(PLAN, depth=1)))
    for i, action in enumerate(actions[:-1]):
        if action.kind == "put" and actions[i + 1].kind == "step":
            actions[i : i + 2] = actions[i + 1], action
    return actions


def simulate(schedule, read_seconds: float = READ) -> list[Busy]:
    """All that happens in PASSES passes. One thread walks the schedule; `now` is how far it has come."""
    now = link_free = device_free = disk_free = running = 0.0
    done: list[Busy] = []
    slots, arrivals = deque([0.0] * SLOTS), deque[tuple[float, bool]]()
    puts = dict.fromkeys(STREAMED, 0)
    for turn in range(1, PASSES + 1):
        for action in schedule(turn):
            record, from_disk = action.record, TIERS[action.record] == "disk"
            if action.kind == "put":
                puts[record] += 1
                if from_disk:  # readers run ahead as far as there are slots
                    start = max(disk_free, slots.popleft())
                    disk_free = start + read_seconds
                    done.append(Busy("read", record, puts[record], start, disk_free))
                    now = max(now, disk_free)
                # On CUDA a copy waits for the compute that was enqueued before it.
                start = max(now, link_free, device_free)
                link_free = start + PUT
                done.append(Busy("put", record, puts[record], start, link_free))
                arrivals.append((link_free, from_disk))
                continue
            if record in STREAMED:
                arrived, had_slot = arrivals.popleft()
                now = max(now, arrived)
                slots.extend([now] if had_slot else [])
            start = max(now, device_free)
            device_free = start + STEP
            done.append(Busy("compute", record, turn, start, device_free))
            now, running = max(now, running), device_free
        now = running = max(now, running) + SAMPLE  # the pass is over: a token is sampled and embedded
    return done


WIDTH, LEFT, UNIT, HEIGHT, GAP = 1010, 150, 32.5, 30, 10
LABELS = {"read": "disk → ring slot", "put": "slot → device", "compute": "expand, apply layer"}
COLOURS = {1: "#1f5fa8", 2: "#b0560f", 3: "#2d7a3e", 4: "#6e40aa"}


def text(x: float, y: float, words: str, **attributes: str) -> str:
    """A line of text."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{words}</text>'


def panel(top: float, title: str, rows: tuple[str, ...], busy: list[Busy]) -> list[str]:
    """One timeline: a title, a row of boxes for each kind of work, a line where each pass begins."""
    lines = [text(16, top, title, font_weight="bold")]
    y = {row: top + 34 + i * (HEIGHT + GAP) for i, row in enumerate(rows)}
    bottom = top + 34 + len(rows) * (HEIGHT + GAP)
    for row in rows:
        lines.append(text(16, y[row] + 13, row, font_weight="bold"))
        lines.append(text(16, y[row] + 26, LABELS[row], font_size="11"))
    for turn in range(1, PASSES + 1):
        start = min(b.start for b in busy if (b.row, b.turn) == ("compute", turn))
        if start < DRAWN:
            x = LEFT + start * UNIT
            lines.append(
                f'<line x1="{x:.1f}" y1="{top + 18}" x2="{x:.1f}" y2="{bottom - 4}" '
                f'stroke="{COLOURS[turn]}" stroke-dasharray="4 3"/>'
            )
            lines.append(text(x + 4, top + 27, f"pass {turn}", fill=COLOURS[turn], font_size="11"))
    for b in busy:
        if b.row in rows and b.start < DRAWN:
            x, width = LEFT + b.start * UNIT, (min(b.end, DRAWN) - b.start) * UNIT
            lines.append(
                f'<rect x="{x:.1f}" y="{y[b.row]}" width="{width:.1f}" height="{HEIGHT}" rx="3" '
                f'fill="{COLOURS[b.turn]}" stroke="#ffffff"/>'
            )
            if b.end <= DRAWN:
                middle = x + width / 2
                lines.append(text(middle, y[b.row] + 20, str(b.record), fill="#ffffff", text_anchor="middle"))
    return lines


def phases(y: float, busy: list[Busy]) -> list[str]:
    """What happens when, below a panel."""
    first = {(b.row, b.turn): b.start for b in reversed(busy)}
    words = (
        (0.0, "start-up"),
        (first["compute", 1], "steady state: transfer behind transfer"),
        (first["put", 2], "↑ wrap-around: pass 2 is on its way before pass 1 is over"),
    )
    return [text(LEFT + start * UNIT, y, phase, font_size="11") for start, phase in words]


def seconds_per_pass(busy: list[Busy]) -> float:
    """From the second pass to the third."""
    starts = [min(b.start for b in busy if (b.row, b.turn) == ("compute", turn)) for turn in (2, 3)]
    return starts[1] - starts[0]


def draw() -> str:
    """The picture as SVG text. It brings its own light background, so it reads on dark pages too."""
    ours, other = simulate(overlapped), simulate(one_after_another)
    times = seconds_per_pass(ours), seconds_per_pass(other)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 380" '
        'font-family="sans-serif" font-size="13" fill="#1b1f24">',
        "<title>Timeline of reads, transfers and computation over two passes</title>",
        f'<rect width="{WIDTH}" height="380" rx="8" fill="#f6f8fa" stroke="#8c959f"/>',
        *panel(
            28,
            f"put(i+{DEPTH}) before step(i): the link never waits; {times[0]:.1f} units a pass",
            ("read", "put", "compute"),
            ours,
        ),
        *phases(194, ours),
        *panel(
            224,
            f"for comparison, put(i+1) behind step(i): each waits for the other; {times[1]:.1f} units a pass",
            ("put", "compute"),
            other,
        ),
        text(
            16,
            352,
            "Boxes carry record numbers; the colour is the pass they belong to. "
            f"Record {TIERS.index('device')} stays on the device, record {TIERS.index('host')} in "
            "host memory; the others come from disk in every pass.",
            font_size="11",
        ),
        text(
            16,
            368,
            f"Units of time: read {READ:g}, put {PUT:g}, compute {STEP:g}, sampling {SAMPLE:g}. "
            "Time runs to the right.",
            font_size="11",
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
