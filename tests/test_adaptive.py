"""Which variant runs, by a clock that the test moves: quickly down, slowly up, and never to and fro."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.adaptive import AdaptSettings, Adaptive

#: Milliseconds of one inference of three variants.
MODEL_MS = (100.0, 40.0, 15.0)


def simulated(adaptive: Adaptive, seconds: int, ages: tuple[float, ...], bound: float | None, heat=None) -> list[int]:
    """The variant in each second, where each variant's results have a fixed age. heat: by variant, or None."""
    found = []
    for now in range(seconds):
        variant = adaptive.variant
        adaptive.update(float(now), ages[variant], bound, heat[variant] if heat else None)
        found.append(adaptive.variant)
    return found


def changes(variants: list[int]) -> int:
    return sum(one != other for one, other in zip(variants, variants[1:], strict=False))


def test_it_steps_down_until_the_bound_is_kept_and_stays() -> None:
    adaptive = Adaptive(AdaptSettings(), MODEL_MS)
    found = simulated(adaptive, 300, (150.0, 90.0, 60.0), 66.0)
    assert found[:2] == [0, 0] and found[-1] == 2
    assert found == sorted(found)  # from 60 ms, 25 more would be too much: there is no room for a step up
    assert found.index(2) < 15


def test_a_change_tells_why() -> None:
    adaptive = Adaptive(AdaptSettings(), MODEL_MS)
    told = [adaptive.update(float(now), 150.0, 66.0, None) for now in range(5)]
    (change,) = [one for one in told if one is not None]
    assert (change.before, change.after) == (0, 1) and "150 ms old, at most 66" in change.reason


def test_it_steps_up_again_when_there_is_room() -> None:
    adaptive = Adaptive(AdaptSettings(), MODEL_MS)
    simulated(adaptive, 20, (300.0, 200.0, 150.0), 120.0)
    assert adaptive.variant == 2
    for now in range(20, 120):
        adaptive.update(float(now), (110.0, 50.0, 20.0)[adaptive.variant], 120.0, None)
    assert adaptive.variant == 0


def test_one_bad_second_is_no_reason() -> None:
    adaptive = Adaptive(AdaptSettings(), MODEL_MS)
    for now in range(100):
        adaptive.update(float(now), 500.0 if now % 10 == 0 else 50.0, 66.0, None)
        assert adaptive.variant == 0


def test_heat_steps_down_and_only_a_cool_machine_steps_up() -> None:
    adaptive = Adaptive(AdaptSettings(70.0), MODEL_MS)
    for now in range(10):
        adaptive.update(float(now), 10.0, None, 75.0)
    hot = adaptive.variant
    assert hot > 0
    for now in range(10, 200):  # below the bound, but not by the five degrees
        adaptive.update(float(now), 10.0, None, 67.0)
    assert adaptive.variant == hot
    for now in range(200, 300):
        adaptive.update(float(now), 10.0, None, 60.0)
    assert adaptive.variant == 0


def test_without_bounds_or_figures_nothing_changes() -> None:
    adaptive = Adaptive(AdaptSettings(), MODEL_MS)
    assert changes(simulated(adaptive, 90, (1e6, 1e6, 1e6), None)) == 0
    for now in range(100, 200):
        assert adaptive.update(float(now), None, 50.0, None) is None


@given(
    ages=st.tuples(*[st.floats(1, 500)] * 3),
    bound=st.floats(1, 500),
    heat=st.none() | st.tuples(*[st.floats(30, 100)] * 3),
    model_ms=st.tuples(*[st.floats(1, 200)] * 3),
)
def test_it_never_goes_to_and_fro_under_a_constant_load(ages, bound, heat, model_ms) -> None:
    """In an hour two quiet times of 15, 30, 60 … 600 seconds bound how often it can try: some 11 times up, as often
    down, and two at the beginning. A rule without memory would change some 400 times."""
    found = simulated(Adaptive(AdaptSettings(65.0), model_ms), 3600, ages, bound, heat)
    assert changes(found) <= 2 * 12 + 2
    assert changes(found[1800:]) <= 2 * 3 + 2


@given(st.lists(st.tuples(st.none() | st.floats(0, 1e4), st.none() | st.floats(-50, 150)), max_size=200))
def test_the_variant_is_always_one_of_them(seen) -> None:
    adaptive = Adaptive(AdaptSettings(60.0), MODEL_MS)
    for now, (age, heat) in enumerate(seen):
        before = adaptive.variant
        change = adaptive.update(float(now), age, 100.0, heat)
        assert 0 <= adaptive.variant < 3 and abs(adaptive.variant - before) <= 1
        assert (change is None) == (adaptive.variant == before)


def test_one_variant_stays() -> None:
    assert simulated(Adaptive(AdaptSettings(10.0), (5.0,)), 50, (1e4,), 1.0, (99.0,)) == [0] * 50


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_further_step_down_waits_for_its_own_patience(count: int) -> None:
    settings = AdaptSettings(patience=4.0)
    found = simulated(Adaptive(settings, tuple(float(count - i) for i in range(count))), 40, (999.0,) * count, 10.0)
    assert found[-1] == count - 1
    assert all(found.count(variant) >= 4 for variant in range(count - 1))
