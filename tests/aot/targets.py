"""Devices to compile for that are not there: XLA's description of a GPU, as text."""

from __future__ import annotations

import re
from pathlib import Path

DEVICES = {
    "8.0": "NVIDIA A100",
    "8.6": "NVIDIA RTX 3090",
    "8.9": "NVIDIA RTX 4090",
    "9.0": "NVIDIA H200",
    "10.0": "NVIDIA B200",
    "12.0": "NVIDIA RTX 5090",
}
"""A device's name, by compute capability."""
H200 = "9.0"


def description(capability: str) -> str:
    """The text for a device of this compute capability. Only that and the name are its own: cores, memory and
    all other figures stay the H200's, which decide nothing about a Triton kernel's machine code."""
    text = Path(__file__).with_name("h200.textproto").read_text()
    major, minor = capability.split(".")
    both = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    text = re.sub(r"cuda_compute_capability \{.*?\}", both, text)
    return text.replace("NVIDIA H200", DEVICES[capability])
