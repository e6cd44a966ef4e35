"""A thousand tokens, two hundred passes: memory, arrays, threads and files stay as many as they were.

In processes of their own: what other tests leave to the allocator is not measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from layer_stacks import device_budget, host_budget, stack

import endor_jax as endor
from tests.generate.budgets import smallest
from tests.tiny_models import LLAMA, write_tiny

SLACK_BYTES = 3 * 2**20
"""Resident memory may grow by so much after the first samples: the allocators of Python and XLA, each with an
arena per thread, take room in pieces up to 1 MiB and keep it. One record (50 kB) that stayed behind per pass
would be 40 MB over the tokens, 7 MB over the passes."""

SAMPLE = """
import gc, json, os, sys, threading
import jax
import endor_jax as endor
from endor_jax.memory import resident_bytes

def sample():
    gc.collect()
    return {
        "bytes": resident_bytes(),
        "arrays": len(jax.live_arrays()),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "regions": len(open("/proc/self/maps").readlines()),
    }

path, samples = sys.argv[1], []
budgets = {"device_memory": int(sys.argv[2]), "host_memory": int(sys.argv[3])}
"""
TOKENS = """
with endor.load(path, context=1200, reader="preadv", **budgets) as model:
    assert model.plan.count("disk") >= 4, model.plan
    for number, token in enumerate(model.generate([5, 6, 7], max_tokens=1000), 1):
        if number % 100 == 0:
            samples.append(sample())
    assert number == 1000, number
print(json.dumps(samples))
"""
PASSES = """
import numpy as np
x = np.ones((2, 64), np.float32)
layer = lambda p, x, s: (x + 1e-3 * x @ p["up"].T @ p["down"].T, s)
with endor.stream(layer, path, reader="preadv", **budgets) as run:
    assert run.plan.count("disk") >= 4, run.plan
    for number in range(1, 201):
        run(x)
        if number % 20 == 0:
            samples.append(sample())
print(json.dumps(samples))
"""


def sampled(script: str, path: Path, *budgets: int) -> list[dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE + script, str(path), *map(str, budgets)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def check_flat(samples: list[dict[str, int]]) -> None:
    """Nothing grows from the second of ten samples on."""
    assert len(samples) == 10
    settled, later = samples[1], samples[2:]
    # Files: what is being read just then is open.
    # Regions of memory: also those of allocators, a few more or less. One that stayed would be one per pass.
    for what, slack in {"arrays": 0, "threads": 0, "files": 4, "regions": 10}.items():
        assert max(sample[what] for sample in later) <= settled[what] + slack, (what, samples)
    assert max(sample["bytes"] for sample in later) <= settled["bytes"] + SLACK_BYTES, samples


def test_a_thousand_tokens(tmp_path: Path) -> None:
    config = LLAMA | {"max_position_embeddings": 1200, "num_hidden_layers": 8, "eos_token_id": None}
    source = write_tiny(tmp_path / "source", config)
    endor.convert(source, tmp_path / "dst", dtype="bfloat16", prune="magnitude", sparsity=0.5)
    check_flat(sampled(TOKENS, tmp_path / "dst", *smallest(tmp_path / "dst", context=1200)))


def test_two_hundred_passes(tmp_path: Path) -> None:
    endor.save(tmp_path / "x.endor", stack(8, hidden=128))
    path = tmp_path / "x.endor"
    check_flat(sampled(PASSES, path, device_budget(path, 0), host_budget(path, 6)))
