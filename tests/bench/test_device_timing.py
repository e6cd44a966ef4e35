"""Timing on a device: what a sample is, whose turn it is, and what figures follow from samples."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import processors
from endor_jax.bench import device, device_copy
from endor_jax.bench import device_timing as timing
from endor_jax.bench.device_cells import Failure, Walk, attempt
from endor_jax.bench.device_copy import copy_bytes_per_second, copy_programs
from endor_jax.bench.device_matrices import (
    ALL_SHAPES,
    device_matrix,
    measured_sparsity,
    words_on_device,
)
from endor_jax.bench.device_timing import DeviceTiming, Program, compiled, matrices_of, time_programs
from endor_jax.errors import UnsupportedError
from endor_jax.format.decode import decode


@dataclass
class Course:
    """A clock that programs move: by what issuing costs when they start, by the rest when one waits."""

    now: float = 0.0
    waiting: float = 0.0
    starts: list[str] = field(default_factory=list)

    def program(self, name: str, seconds: float, *, issue: float = 0.0, matrices: int = 4) -> Program:
        def start() -> None:
            self.starts.append(name)
            self.now += issue
            self.waiting += seconds - issue

        return Program(name, 100, matrices, 2.5, start)

    def wait(self, pending: object) -> None:
        self.now, self.waiting = self.now + self.waiting, 0.0


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> Course:
    made = Course()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing.jax, "block_until_ready", made.wait)
    return made


def test_a_sample_is_as_many_calls_as_make_it_long_and_is_given_per_matrix(course: Course):
    (measured,) = time_programs([course.program("a", 0.001, issue=0.0004)], seconds=1.0)
    assert measured.calls == 5  # of 1 ms each
    assert len(measured.seconds) == len(measured.issue_seconds) == timing.ROUNDS
    assert measured.median_seconds == pytest.approx(0.001 / 4)
    assert measured.issue_share == pytest.approx(0.4)
    assert measured.bytes_per_second == pytest.approx(100 / (0.001 / 4))
    assert measured.first_seconds == 2.5
    assert len(course.starts) == 2 + 5 * timing.ROUNDS


def test_a_sample_is_one_call_of_what_takes_long_and_not_endless_of_what_takes_nothing(course: Course):
    long, short = time_programs([course.program("a", 0.3), course.program("b", 1e-7)], seconds=0.0)
    assert (long.calls, short.calls) == (1, timing.MOST_CALLS)


def test_programs_take_turns_and_a_slow_one_stops_when_its_time_is_over(course: Course):
    slow, fast = time_programs([course.program("slow", 1.0), course.program("fast", 0.006)], seconds=0.02)
    assert len(slow.seconds) == timing.LEAST_ROUNDS
    assert len(fast.seconds) == timing.LEAST_ROUNDS
    assert course.starts[4:] == ["slow", "fast"] * timing.LEAST_ROUNDS
    (fast,) = time_programs([course.program("fast", 0.006)], seconds=0.07)
    assert len(fast.seconds) == 12


def test_a_timing_has_all_samples_as_json():
    made = DeviceTiming("a", 100, 2, 1.5, (2.0, 4.0, 6.0), 3, (1.0, 1.0, 3.0))
    values = made.to_json()
    assert values["seconds"] == [2.0, 4.0, 6.0]
    assert values["issue_seconds"] == [1.0, 1.0, 3.0]
    assert (values["calls"], values["matrices"], values["first_seconds"]) == (3, 2, 1.5)
    assert (values["median_seconds"], values["issue_share"], values["bytes_per_second"]) == (4.0, 0.25, 25.0)


@pytest.mark.parametrize(
    ("cache", "matrix", "moved", "expected"),
    [(60e6, 300e6, 900e6, 2), (60e6, 12e6, 46e6, 24), (60e6, 4e6, 38e6, 60), (1, 1000, 2**29, 2)],
)
def test_matrices_are_four_times_the_cache_and_move_a_gibibyte(cache, matrix, moved, expected):
    count = matrices_of(int(cache), matrix_bytes=int(matrix), moved_bytes=int(moved))
    assert count == expected
    assert count * matrix >= 4 * cache
    assert count * moved >= timing.PROGRAM_BYTES


def test_copies_of_a_matrix_have_memory_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "PROGRAM_BYTES", 1)
    matrix = device_matrix((16, 96), codec="raw", sparsity=0.5, dtype="bfloat16")
    words = words_on_device(matrix, 2 * matrix.stored_bytes, moved_bytes=matrix.stored_bytes)
    assert len(words) == 8
    assert len({each.unsafe_buffer_pointer() for each in words}) == 8
    assert all(np.array_equal(each, matrix.words) for each in words)


@pytest.mark.parametrize("codec", ["raw", "packed:2", "int4", "int8"])
def test_a_matrix_is_what_its_words_hold(codec: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("endor_jax.bench.device_matrices.BLOCK_ELEMENTS", 3 * 96)
    matrix = device_matrix((10, 96), codec=codec, sparsity=0.75, dtype="bfloat16")
    assert matrix.dense.shape == (10, 96)
    assert matrix.dense.tobytes() == decode(matrix.tensor).tobytes()
    assert matrix.dense[:3].tobytes() == matrix.dense[3:6].tobytes() == matrix.dense[6:9].tobytes()
    assert (np.count_nonzero(matrix.dense.astype(np.float32), axis=1) <= 24).all()
    assert (matrix.stored_bytes, matrix.dense_bytes) == (4 * len(matrix.words), 10 * 96 * 2)


def test_codecs_without_a_bitmap_have_no_zeros():
    assert measured_sparsity("dense-packed:3", 0.7) == 0.0
    assert measured_sparsity("packed:3", 0.7) == 0.7


def test_shapes_are_those_of_the_models_matrices():
    assert len(set(ALL_SHAPES)) == len(ALL_SHAPES) == 10
    assert (28672, 8192) in ALL_SHAPES


def test_results_take_the_memory_that_is_given():
    first, second = jnp.arange(1000.0), jnp.zeros(1000)
    place = second.unsafe_buffer_pointer()
    program, seconds = compiled(lambda x, before: x + 1, first, second, donate=1)
    result = program(first, second)
    assert second.is_deleted()
    assert result.unsafe_buffer_pointer() == place
    assert seconds > 0


def test_both_copies_copy_and_are_rated_by_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_copy, "COPY_BYTES", 4096)
    plain, kernel = copy_programs()
    assert plain.bytes == kernel.bytes == 8192
    first = np.asarray(plain.start())
    assert len(np.unique(first)) > 1000
    assert np.array_equal(~first, kernel.start())
    assert np.array_equal(first, plain.start())


def test_the_faster_copy_is_the_bandwidth():
    timings = [
        DeviceTiming(name, 100, 1, 0.0, (seconds,), 1, (0.0,))
        for name, seconds in (("copy", 2.0), ("copy by a kernel", 1.0), ("xla", 0.1))
    ]
    assert copy_bytes_per_second(timings) == 100.0


class Cells:
    """Cells that take so long each by a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float):
        self.now, self.seconds, self.said = 0.0, seconds, []
        monkeypatch.setattr("endor_jax.bench.device_cells.time.perf_counter", lambda: self.now)

    def walk(self, count: int, limit: float | None) -> tuple[list[str], Walk[str]]:
        walk = Walk([f"cell {i}" for i in range(count)], 5.0, limit, self.said.append)
        done = []
        for cell in walk:
            done.append(cell)
            self.now += self.seconds
        return done, walk


def test_no_cell_is_begun_that_would_not_fit_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch):
    cells = Cells(monkeypatch, seconds=2.0)
    done, walk = cells.walk(10, limit=8.0)
    assert done == ["cell 0", "cell 1", "cell 2", "cell 3"]  # the limit is a time that a cell may end at
    assert walk.left_out == tuple(f"cell {i}" for i in range(4, 10))
    assert cells.said[0] == "cell 0 (1 of 10; about 50 s left)"
    assert cells.said[1] == "cell 1 (2 of 10; about 18 s left)"
    assert cells.said[-1] == "6 cells left out: no more than 8 s"


def test_without_a_limit_all_cells_are_measured(monkeypatch: pytest.MonkeyPatch):
    done, walk = Cells(monkeypatch, seconds=1e6).walk(3, limit=None)
    assert (len(done), walk.left_out) == (3, ())


def test_what_cannot_be_compiled_or_run_is_kept_with_what_was_said():
    def make(fault: str | None) -> Program:
        if fault == "compile":
            raise NotImplementedError("no such lowering")
        return Program("a", 1, 1, 0.0, lambda: 1 / 0 if fault == "run" else jnp.ones(2))

    assert attempt("a", make, "compile") == Failure("a", "NotImplementedError: no such lowering")
    assert attempt("a", make, "run") == Failure("a", "ZeroDivisionError: division by zero")
    assert isinstance(attempt("a", make, None), Program)


def test_a_device_says_what_it_is():
    facts = device.device_facts()
    assert facts.platform == jax.default_backend()
    assert facts.cache_bytes > 0
    assert device.on_a_device() == (facts.platform != "cpu")
    if facts.platform == "cpu":
        assert (facts.cache_bytes, facts.cache_from) == (processors.last_level_cache_bytes(), "Linux")
        assert device.device_implementations() == ("xla",)


def test_cuda_tells_the_size_of_the_cache(monkeypatch: pytest.MonkeyPatch):
    def call(name: str, size: ctypes._Pointer, attribute: int, ordinal: int) -> None:  # pyright: ignore[reportPrivateUsage]
        assert (name, attribute, ordinal) == ("cudaDeviceGetAttribute", 38, 3)
        ctypes.cast(size, ctypes.POINTER(ctypes.c_int))[0] = 60_000_000

    monkeypatch.setattr(device, "find_runtime", lambda: Mock(call=call))
    assert device._cache("gpu", 3) == (60_000_000, "CUDA")


def test_without_cuda_a_cache_larger_than_any_is_assumed(monkeypatch: pytest.MonkeyPatch):
    def find() -> None:
        raise UnsupportedError("CUDA", got="none", expected="one", fix="install it")

    monkeypatch.setattr(device, "find_runtime", find)
    assert device._cache("gpu", 0) == (device.CACHE_BYTES, "assumed")
    assert device._cache("tpu", None) == (device.CACHE_BYTES, "assumed")
