"""What a record says of the machine, and processes that are bound to some of its CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest

from endor_jax import processors
from endor_jax.bench import environment as described
from endor_jax.bench.environment import environment
from endor_jax.bench.processes import check_threads, process_of, run
from endor_jax.errors import InvalidInputError, OptionError, UnsupportedError
from endor_jax.processors import last_level_cache_bytes, usable_cpus


def test_the_environment_tells_commit_versions_and_machine():
    made = environment()
    assert made.commit is None or len(made.commit) == 40
    assert {"python", "endor_jax", "jax", "numpy", "torch"} <= made.versions.keys()
    assert {"model", "cpus", "caches", "features", "instruction_sets", "memory_bytes"} <= made.machine.keys()


def test_caches_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processors, "CPUS", tmp_path)
    assert last_level_cache_bytes() == processors.CACHE_BYTES
    for index, (level, kind, size) in enumerate([("1", "Data", "32K"), ("3", "Unified", "96M")]):
        cache = tmp_path / "cpu0" / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (cache / name).write_text(text + "\n")
    assert last_level_cache_bytes() == 96 * 2**20
    assert environment().machine["caches"][0] == {
        "level": 1,
        "kind": "Data",
        "bytes": 2**15,
        "shared_by_cpus": "",
    }


def test_the_model_of_the_processor_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(described, "CPUINFO", file)
    assert environment().machine["features"] == []
    file.write_text(
        "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A CPU\nflags\t\t: fpu avx2 lm\n\nx\t: 1\n"
    )
    machine = environment().machine
    assert machine["model"] == "A CPU, cpu family 25, model 17"
    assert machine["features"] == ["avx2"]


def refused() -> None:
    raise InvalidInputError("there", got="one thing", expected="another", fix="do it")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_a_process_has_as_many_cpus_as_wanted_and_its_errors_come_back():
    before = usable_cpus()
    with process_of(1) as process:
        assert run(process, usable_cpus) == before[:1]
        assert run(process, jax.default_backend) == "cpu"
        with pytest.raises(InvalidInputError, match="there: got one thing, expected another; do it"):
            run(process, refused)
        assert usable_cpus() == before


def test_more_threads_than_cpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    cpus = len(usable_cpus())
    check_threads(cpus)
    for wrong in (0, cpus + 1):
        with pytest.raises(OptionError, match=f"threads: got {wrong}, expected 1 to {cpus}"):
            check_threads(wrong)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    check_threads(3)
    with pytest.raises(UnsupportedError, match="threads: got 2 of 3, expected 3, because this system binds"):
        check_threads(2)
