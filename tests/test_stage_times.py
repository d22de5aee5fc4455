"""What a run tells of its last seconds, by a clock that the test moves."""

import pytest

from deploy.stage_times import MOST, SECONDS, StageTimes, spread
from deploy.status import Spread


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_yet() -> None:
    times = StageTimes(Clock())
    assert (times.fps(), times.milliseconds(), times.age(), times.results, times.detections()) == (0.0, {}, None, 0, {})


def test_ten_results_a_second() -> None:
    clock = Clock()
    times = StageTimes(clock)
    for i in range(41):
        times.add({"invoke": float(i), "preprocess": 1.0}, 10.0 + i, [i % 2, 1])
        clock.now += 0.1
    clock.now -= 0.1
    assert times.fps() == pytest.approx(10)
    assert times.milliseconds() == {"preprocess": Spread(1.0, 1.0), "invoke": Spread(20.0, 38.0)}
    assert times.age() == Spread(30.0, 48.0)
    assert times.results == 41 and times.detections() == {1: 41 + 20, 0: 21}


def test_what_is_old_counts_no_more_but_is_still_counted() -> None:
    clock = Clock()
    times = StageTimes(clock)
    times.add({"invoke": 1.0}, 5.0, [3])
    times.add({"invoke": 1.0}, 5.0, [3])
    clock.now += SECONDS / 2
    assert times.fps() == pytest.approx(1 / (SECONDS / 2))  # a run that stands still gets slower and slower
    clock.now += SECONDS / 2 + 0.01
    assert (times.fps(), times.milliseconds(), times.age()) == (0.0, {}, None)
    assert (times.results, times.detections()) == (2, {3: 2})


def test_files_have_no_age_and_another_variant_begins_anew() -> None:
    times = StageTimes(Clock())
    times.add({"invoke": 1.0}, None, [])
    assert times.age() is None and "invoke" in times.milliseconds()
    times.forget()
    assert times.milliseconds() == {} and times.results == 1


def test_memory_is_bounded() -> None:
    times = StageTimes(Clock())
    for i in range(2 * MOST):
        times.add({"invoke": float(i)}, None, [])
    assert times.milliseconds()["invoke"].p50 == pytest.approx(1.5 * MOST - 0.5)


def test_spread_is_linear_between_ranks() -> None:
    assert spread([4.0]) == Spread(4.0, 4.0)
    assert spread([0.0, 10.0]) == Spread(5.0, 9.5)
