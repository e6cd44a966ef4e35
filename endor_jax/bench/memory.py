"""Memory as it was stated beforehand, as it is limited, as it was taken: to convert, calibrate, generate.

Every figure comes from a fresh process of the command line, so that what one verb leaves in memory is not
counted for the next; what a process took is its peak resident memory (VmHWM).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.verb import run_verb
from endor_jax.bench.workloads import workload, write_workload

BUDGET = "300MiB"
"""Of device and of host memory, for generate."""
TOKENS = 8
CALIBRATION_BLOCKS = 4
"""One step's worth of 512 tokens: more blocks are more steps of the same size."""


@dataclass(frozen=True)
class MemorySample:
    """One run of one verb.

    what: convert, calibrate (a conversion that does) or generate; stated_bytes: beforehand, None if it stated
    nothing; limit_bytes: of the workload, None without; taken_bytes: peak resident memory of the process;
    seconds: of the process, imports included.
    """

    what: str
    arguments: tuple[str, ...]
    stated_bytes: int | None
    limit_bytes: int | None
    taken_bytes: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether no more was taken than was stated and is allowed."""
        bounds = [bound for bound in (self.stated_bytes, self.limit_bytes) if bound is not None]
        return all(self.taken_bytes <= bound for bound in bounds)


@dataclass(frozen=True)
class MemoryRecord:
    """All samples of a measurement, with what they were measured on."""

    model: str
    samples: tuple[MemorySample, ...]
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        """As JSON; every sample tells whether its bounds were kept."""
        samples = [asdict(sample) | {"kept": sample.kept} for sample in self.samples]
        values = {"benchmark": "memory", "model": self.model, "samples": samples}
        return values | asdict(self.environment)


def measure_memory(
    model: str, work_directory: Path, *, report: Callable[[str], None] = lambda what: None
) -> MemoryRecord:
    """Makes the workload `model` in `work_directory`, converts it twice, generates from it.

    Without calibration, then with the method that takes most; half of the weights go. The source stays there
    for the next time; the checkpoints are removed. report: called with what is being
    done. Raises OptionError for an unknown model, EndorError if a verb fails.
    """
    limits = workload(model).limit_bytes
    source, checkpoint = work_directory / model, work_directory / f"{model}.endor"
    report(f"making {model}")
    write_workload(source, model)
    calibrated = work_directory / f"{model}-calibrated.endor"
    half = ("--sparsity", "0.5")
    calibration = ("--calibration-target", "model", "--calibration-blocks", str(CALIBRATION_BLOCKS))
    budgets = ("--device-memory", BUDGET, "--host-memory", BUDGET)
    prompt = ("-p", "Once upon a time", "--max-tokens", str(TOKENS))
    runs = {
        "convert": ("convert", str(source), str(checkpoint), "--prune", "magnitude", *half),
        "calibrate": ("convert", str(source), str(calibrated), "--prune", "admm", *half, *calibration),
        "generate": ("generate", str(checkpoint), *prompt, *budgets),
    }
    samples = []
    try:
        for what, arguments in runs.items():
            report(what)
            samples.append(_sample(what, arguments, limits.get(what)))
    finally:
        for path in (checkpoint, calibrated):
            shutil.rmtree(path, ignore_errors=True)
    return MemoryRecord(model, tuple(samples), environment())


def _sample(what: str, arguments: Sequence[str], limit_bytes: int | None) -> MemorySample:
    """One verb in a process of its own."""
    values, seconds = run_verb(arguments)
    stated, taken = values["expected_peak_host_bytes"], values["peak_host_bytes"]
    return MemorySample(what, tuple(arguments), stated, limit_bytes, taken, seconds)
