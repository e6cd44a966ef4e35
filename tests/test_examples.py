"""Every example runs as a user would run it, prints what it promises, and nothing to stderr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
OUTCOMES = {
    "encode_and_expand.py": [
        r"SparseTensor\(bfloat16\[1024, 4096\], packed:2, [\d,]+ bytes in 1 part\(s\)\)",
        "expands to the same bits: True",
        "product agrees: True",
        "gradient agrees: True",
        r"0\.7\d bytes per weight instead of 2",
    ],
    "linen_transformer.py": [
        r"records +\d+ on the device, 0 in host memory, [1-9] on disk; \d issued ahead, \d being read",
        r"device +[\d.]+ MiB of 6 MiB",
        r"19 MiB of weights, \d+ MiB read from disk",
        "same bits as with all blocks on the device: True",
        "close to model.apply: True",
    ],
    "nnx_vision_encoder.py": [
        r"records +\d+ on the device, 0 in host memory, [1-9] on disk; \d issued ahead, \d being read",
        r"device +[\d.]+ MiB of 6 MiB",
        r"18 MiB of weights, \d+ MiB read from disk",
        "same bits as with all blocks on the device: True",
        r"close to model\(images\): True",
    ],
    "skip_layers.py": [
        r"records +\d+ on the device, 0 in host memory, [1-9]\d* on disk; \d issued ahead, \d being read",
        r"device +[\d.]+ MiB of 8 MiB",
        r"layers called \(#\) and left out \(-\): .*#-.*",
        r"layers called .* [#-]{2,11}( .*)?",  # one ends early
        "same bits as in memory: True",
    ],
    "stream_your_own_module.py": [
        r"records +\d+ on the device, \d+ in host memory, [1-9]\d* on disk; \d issued ahead, \d being read",
        r"device +[\d.]+ MiB of 20 MiB",
        r"64 MiB of weights, 2\d MiB read from disk",
        "same bits as in memory: True",
    ],
}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for outcome in OUTCOMES[name]:
        assert re.search(f"^{outcome}$", done.stdout, re.MULTILINE), done.stdout
