"""Races: whose turn it is, which samples count, and what follows from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import pytest

from endor_jax.bench import race as racing
from endor_jax.bench.race import ROUNDS, SLOW_ROUNDS, Contender, Timing, race


@dataclass
class Course:
    """A clock that only moves when a contender runs, and a list of who ran on which matrix."""

    now: float = 0.0
    runs: list[tuple[str, int]] = field(default_factory=list)

    def contender(self, name: str, seconds: float, matrices: int = 4) -> Contender:
        def call(index: int) -> None:
            self.runs.append((name, index))
            self.now += seconds

        return Contender(name, 100, matrices, call)


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> Course:
    made = Course()
    monkeypatch.setattr(racing.time, "perf_counter", lambda: made.now)
    return made


def turns(course: Course) -> list[str]:
    names = [name for name, _ in course.runs]
    return [name for place, name in enumerate(names) if not place or names[place - 1] != name]


def test_contenders_take_turns(course: Course):
    race([course.contender("a", 1e-6), course.contender("b", 2e-6), course.contender("c", 3e-6)], seconds=1.0)
    assert turns(course) == ["a", "b", "c"] * (ROUNDS + 1)  # once to compile


def test_every_matrix_is_used_as_often_as_the_others_and_the_first_call_of_a_turn_is_none(course: Course):
    (timing,) = race([course.contender("a", 1e-6, matrices=5)], seconds=1.0)
    per_turn = [0, 1, 2, 3, 4, 0]
    assert [matrix for _, matrix in course.runs] == [0, *per_turn * ROUNDS]
    assert len(timing.seconds) == 5 * ROUNDS
    assert timing.matrices == 5


def test_a_slow_contender_has_three_samples_and_a_fast_one_stops_when_its_time_is_over(course: Course):
    slow, fast = race([course.contender("slow", 60.0), course.contender("fast", 0.02)], seconds=0.12)
    assert slow.seconds == pytest.approx([60.0] * SLOW_ROUNDS)
    assert 0.12 <= sum(fast.seconds) <= 0.15


def test_the_first_call_is_kept_apart(course: Course):
    calls = iter([9.0, *[1.0] * 100])
    contender = Contender("a", 100, 2, lambda index: setattr(course, "now", course.now + next(calls)))
    (timing,) = race([contender], seconds=0.0)
    assert timing.first_seconds == 9.0
    assert set(timing.seconds) == {1.0}


def test_a_timing_tells_median_quartiles_and_rate():
    timing = Timing("a", 600, 3, 1.0, (5.0, 1.0, 2.0, 4.0, 3.0))
    values = timing.to_json()
    assert values["median_seconds"] == 3.0
    assert values["least_seconds"] == 1.0
    assert values["quartile_seconds"] == (2.0, 4.0)
    assert values["bytes_per_second"] == 200.0
    assert values["seconds"] == [5.0, 1.0, 2.0, 4.0, 3.0]
    assert Timing("a", 1, 1, 0.0, (7.0,)).quartile_seconds == (7.0, 7.0)
    assert timing.median_seconds == statistics.median(timing.seconds)
