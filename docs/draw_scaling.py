"""Draws docs/scaling.svg: tokens per second over devices, measured at 1 to 8 and estimated to 4096.

`python docs/draw_scaling.py` writes the picture and prints the table of docs/scaling.md;
tests/test_scaling_document.py compares both with what is committed. The points are those of RECORD (`endor
bench scaling`), the curves what endor_jax.generate.scaling says: through the points from rates that were
known before these were measured, beyond them from H200, whose rates are assumed: nothing has run on one.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from endor_jax import models
from endor_jax.errors import DoesNotFitError
from endor_jax.generate.scaling import Estimate, Exchange, Load, Machine, Spread, estimate, load_of

RECORD = Path(__file__).parent / "benchmarks" / "2026-11-22-scaling.json"
PICTURE = Path(__file__).with_name("scaling.svg")
BYTES_PER_WEIGHT = 0.77  # bf16, half of them zero (README)
CONTEXT = 2048
PER_HOST = 8
DEVICES = tuple(2**power for power in range(13))
H200 = Machine(  # every rate assumed; where each comes from is in docs/scaling.md
    link_bytes_per_second=50e9,
    disk_bytes_per_second=40e9,
    store_bytes_per_second=10e9,
    weight_bytes_per_second=1.1e12,
    step_seconds=50e-6,
    ends_seconds=1e-3,
    memory_bytes_per_second=4.3e12,
    device_memory_bytes=8 * 2.0**30,
    host_memory_bytes=0.0,
    inside=Exchange(latency_seconds=5e-6, bytes_per_second=450e9),
    between=Exchange(latency_seconds=10e-6, bytes_per_second=400e9),
)
IN_HOST_MEMORY = replace(H200, host_memory_bytes=2e12)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 9216,
    "word_embed_proj_dim": 9216,
    "ffn_dim": 36864,
    "num_hidden_layers": 64,
    "num_attention_heads": 72,
    "max_position_embeddings": 2048,
}
LOADS = {
    name: load_of(models.from_hf(config), BYTES_PER_WEIGHT, context=CONTEXT)
    for name, config in {"Llama-2-70B": LLAMA, "OPT-66B": OPT}.items()
}


def tensor_parallel(devices: int, **options) -> Spread:
    """All devices share every layer."""
    return Spread(tensor=devices, devices_per_host=min(devices, PER_HOST), **options)


def staged(devices: int, stages: int, batch: int) -> Spread:
    """So many stages, the devices of each sharing its layers."""
    return Spread(devices // stages, stages, devices_per_host=min(devices, PER_HOST), batch=batch)


@functools.cache
def largest_batch(load: Load, machine: Machine, devices: int, stages: int) -> Estimate | None:
    """With as many sequences, a power of two, as fit; None if not even one for each stage does."""
    found, batch = None, stages
    while True:
        try:
            found = estimate(load, staged(devices, stages, batch), machine)
        except DoesNotFitError:
            return found
        batch *= 2


def best(load: Load, machine: Machine, devices: int) -> tuple[int, Estimate]:
    """The number of stages, a power of two, with most tokens per second, and what it gives."""
    stages = [2**power for power in range(13) if 2**power <= min(devices, load.config.layers)]
    fitting = [(count, largest_batch(load, machine, devices, count)) for count in stages]
    return max(
        ((count, found) for count, found in fitting if found is not None),
        key=lambda each: each[1].tokens_per_second,
    )


@dataclass(frozen=True)
class Line:
    """Points (devices, tokens/s) under a name; `dots` are not joined."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    dashes: str = ""
    dots: bool = False


def measured() -> dict[bool, list[Line]]:
    """Of the slowed store (True) and of the page cache (False): measured, and what was said beforehand."""
    rows = json.loads(RECORD.read_text())["rows"]
    lines = {}
    for slowed in (True, False):
        own = [row for row in rows if (row["rate"] is not None) == slowed]
        said = [(row["devices"], row["predicted_tokens_per_second"]) for row in own]
        if slowed:
            said = [(row["devices"], row["closed_form"]["tokens_per_second"]) for row in own]
        found = [(row["devices"], row["tokens_per_second"]) for row in own]
        name = "slowed disk of each device" if slowed else "page cache"
        colour = BLUE if slowed else RED
        lines[slowed] = [
            Line(f"{name}: said beforehand", colour, said),
            Line(f"{name}: measured", colour, found, dots=True),
        ]
    return lines


def one_sequence() -> list[Line]:
    """Tensor parallel, batch 1, by what streams: host memory, disks, object store."""
    lines = []
    for name, load in LOADS.items():
        dashes = "" if name == "Llama-2-70B" else "5 4"
        for colour, (words, machine, source) in zip((BLUE, GREEN, RED), SOURCES, strict=True):
            found = [(n, estimate(load, tensor_parallel(n, source=source), machine)) for n in DEVICES]
            points = [(n, each.tokens_per_second) for n, each in found]
            lines.append(Line(f"{name}, {words}", colour, points, dashes))
    return lines


def full_batch() -> list[Line]:
    """As many sequences as fit: tensor parallel alone, and with the number of stages that gives most."""
    lines = []
    for name, load in LOADS.items():
        dashes = "" if name == "Llama-2-70B" else "5 4"
        alone = [(n, largest_batch(load, IN_HOST_MEMORY, n, 1)) for n in DEVICES]
        points = [(n, each.tokens_per_second) for n, each in alone if each is not None]
        lines.append(Line(f"{name}, tensor parallel", BLUE, points, dashes))
        points = [(n, best(load, IN_HOST_MEMORY, n)[1].tokens_per_second) for n in DEVICES]
        lines.append(Line(f"{name}, stages of tensor parallel", GREEN, points, dashes))
    return lines


def table() -> str:
    """The rows of docs/scaling.md: Llama-2-70B, 8 GiB of each device, streamed from host memory."""
    load, lines = LOADS["Llama-2-70B"], []
    for devices in TABLED:
        one = estimate(load, tensor_parallel(devices), IN_HOST_MEMORY)
        many = largest_batch(load, IN_HOST_MEMORY, devices, 1)
        stages, most = best(load, IN_HOST_MEMORY, devices)
        assert many is not None
        lines.append(
            f"| {devices} | {one.transferred_bytes / 1e9:.1f} GB | {rounded(one)} | {rounded(many)} "
            f"| {rounded(most)}, {stages} × {devices // stages} |"
        )
    return "\n".join(lines)


def measured_table() -> str:
    """The rows of docs/scaling.md for what was measured."""
    lines = [
        "| devices | read by each | slowed disks: predicted | closed form | measured | page cache: predicted "
        "| measured |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = json.loads(RECORD.read_text())["rows"]
    of = {(row["devices"], row["rate"] is not None): row for row in rows}
    for devices in sorted({row["devices"] for row in rows}):
        slowed, plain = of[devices, True], of[devices, False]
        figures = (
            slowed["predicted_tokens_per_second"],
            slowed["closed_form"]["tokens_per_second"],
            slowed["tokens_per_second"],
            plain["predicted_tokens_per_second"],
            plain["tokens_per_second"],
        )
        read = f"{slowed['read_bytes_per_device'] / 1e6:.0f} MB"
        lines.append(f"| {devices} | {read} | {' | '.join(f'{each:.2f}' for each in figures)} |")
    return "\n".join(lines)


def rounded(found: Estimate) -> str:
    """Tokens per second, two digits, and what they wait for."""
    rate = found.tokens_per_second
    digits = max(0, 1 - math.floor(math.log10(rate)))
    return f"{round(rate, 1 - math.floor(math.log10(rate))):.{digits}f} ({found.binding})"


BLUE, GREEN, RED = "#1f5fa8", "#2d7a3e", "#b0560f"
SOURCES = (
    ("from host memory", IN_HOST_MEMORY, "disk"),
    ("from disks", H200, "disk"),
    ("from an object store", H200, "store"),
)
TABLED = 1, 2, 4, 8, 16, 64, 512, 4096
WIDTH, HEIGHT, TOP, PLOT, LEFT, ROW = 1010, 470, 62, 260, 52, 15
PANEL = 336


def text(x: float, y: float, words: str, **attributes: str) -> str:
    """A line of text."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{words}</text>'


def panel(place: int, title: str, note: str, lines: Sequence[Line]) -> list[str]:
    """Both axes logarithmic; the scale is that of the points, in whole powers."""
    left, width = LEFT + place * PANEL, PANEL - 70
    devices = [n for line in lines for n, _ in line.points]
    rates = [rate for line in lines for _, rate in line.points]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    most = math.log2(max(devices))

    def at(n: int, rate: float) -> tuple[float, float]:
        return left + width * math.log2(n) / most, TOP + PLOT * (high - math.log10(rate)) / (high - low)

    drawn = [
        text(left - 30, TOP - 30, title, font_weight="bold"),
        text(left - 30, TOP - 13, note, font_size="11"),
    ]
    for power in range(low, high + 1):
        y = at(1, 10.0**power)[1]
        drawn.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#d0d7de"/>')
        drawn.append(text(left - 6, y + 4, f"{10**power:g}" if power >= 0 else f"{10.0**power:g}",
                          text_anchor="end", font_size="11"))  # fmt: skip
    for power in range(0, int(most) + 1, 1 if most < 6 else 2):
        x = at(2**power, 10.0**low)[0]
        drawn.append(text(x, TOP + PLOT + 15, str(2**power), text_anchor="middle", font_size="11"))
    for number, line in enumerate(lines):
        points = [at(n, rate) for n, rate in line.points]
        y = TOP + PLOT + 40 + ROW * number
        if line.dots:
            for x, height in [*points, (left + 12, y - 4)]:
                drawn.append(f'<circle cx="{x:.1f}" cy="{height:.1f}" r="3.5" fill="{line.colour}"/>')
        else:
            dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
            style = f'fill="none" stroke="{line.colour}" stroke-width="1.8"{dashes}'
            path = " ".join(f"{x:.1f},{height:.1f}" for x, height in points)
            drawn.append(f'<polyline points="{path}" {style}/>')
            drawn.append(f'<polyline points="{left},{y - 4} {left + 24},{y - 4}" {style}/>')
        drawn.append(text(left + 30, y, line.name, font_size="11"))
    return drawn


def draw() -> str:
    """The picture as SVG text. It brings its own light background, so it reads on dark pages too."""
    found = measured()
    panels = (
        (
            "Measured: devices of a CPU",
            "tokens/s, 8 layers, one sequence",
            [*found[True], *found[False]],
        ),
        ("Assumed: H200s, one sequence", "tokens/s, tensor parallel, 8 GiB of each", one_sequence()),
        (
            "Assumed: as many sequences as fit",
            "tokens/s of all, 8 GiB of each, from host memory",
            full_batch(),
        ),
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#1b1f24">',
        "<title>Tokens per second over devices, measured and estimated</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#f6f8fa" stroke="#8c959f"/>',
        *(line for place, each in enumerate(panels) for line in panel(place, *each)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(measured_table(), table(), sep="\n\n")
