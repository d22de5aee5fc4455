"""Intervals of percentiles and ratios: what they hold, and how long blocks are."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bootstrap
from benchmarks.bootstrap import block_length, percentile_draws, percentile_intervals, ratio_draws, ratio_interval
from deploy.errors import InputError

#: Times of some rounds of two models: 1 ns to 1 ms.
PAIRS = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=30)


def autoregressive(count: int, correlation: float, seed: int) -> np.ndarray:
    """(count,) normal values of variance 1, of which neighbours correlate."""
    noise = np.random.default_rng(seed).normal(size=count + 100)
    values = np.zeros(count + 100)
    for place in range(1, count + 100):
        values[place] = correlation * values[place - 1] + math.sqrt(1 - correlation**2) * noise[place]
    return values[100:]


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_exchanged_models_give_reciprocals(pairs):
    first, second = zip(*pairs)
    ratio, low, high = ratio_interval(first, second)
    assert 0 < low <= high
    exchanged = ratio_interval(second, first)
    # A ratio, a product and a root, each rounded to 2**-53, on both sides, and the division here.
    assert exchanged == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=8 * 2**-53)


@given(PAIRS, st.integers(1, 10))
@settings(max_examples=30, deadline=None)
def test_the_unit_of_times_cancels_and_a_factor_shows(pairs, exponent):
    first, second = (np.array(side) for side in zip(*pairs))
    found = ratio_interval(first, second)
    # Powers of two, so that nothing is rounded.
    assert ratio_interval(first * 2**exponent, second * 2**exponent) == found
    assert ratio_interval(first * 2**exponent, second) == tuple(2**exponent * value for value in found)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
@settings(max_examples=20, deadline=None)
def test_a_model_against_itself_is_exactly_one(times):
    assert ratio_interval(times, times) == (1.0, 1.0, 1.0)


def test_interval_ends_among_the_ratios_that_rounds_can_give():
    """Of one round there is one ratio; many rounds are drawn in parts, the last of them smaller."""
    assert ratio_interval([30], [20]) == (1.5, 1.5, 1.5)
    assert ratio_interval([30] * 3000, [20] * 3000) == (1.5, 1.5, 1.5)
    ratio, low, high = ratio_interval([10, 20, 30] * 1000, [10] * 3000)
    assert ratio == 2 and {low, high} <= {1.0, 2**0.5, 2.0, 6**0.5, 3.0}


def test_interval_holds_the_true_ratio_and_drift_of_both_cancels():
    """The clock halves during the measurement: the medians' own spread says nothing, the pairs' does."""
    random = np.random.default_rng(0)
    true, rounds, trials = 1.25, 60, 200
    held, widths, apart = 0, [], []
    for trial in range(trials):
        drift = np.linspace(1, 2, rounds)
        second = drift * random.lognormal(13, 0.02, rounds)
        first = true * drift * random.lognormal(13, 0.02, rounds)
        _, low, high = ratio_interval(first, second, seed=trial)
        held += low <= true <= high
        widths.append(high - low)
        _, low, high = ratio_interval(first, random.permutation(second), seed=trial)
        apart.append(high - low)
    # Binomial with 0.95 of 200: mean 190, standard deviation 3.1; five of them below is 174.
    assert held >= 174
    assert np.median(widths) < np.median(apart) / 2


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, 2], [1]), ([1, 0], [1, 1]), ([1], [0])])
def test_what_is_no_pairs_of_times_is_refused(first, second):
    with pytest.raises(InputError, match="in pairs above 0"):
        ratio_interval(first, second)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.integers(0, 5))
def test_intervals_lie_within_the_times_in_order_and_are_drawn_again_alike(times, seed):
    found = percentile_intervals(times, (50, 90, 99), seed=seed)
    assert list(found) == [50, 90, 99]
    # Interpolation between two ranks rounds.
    slack = 1e-9 * max(times)
    for low, high in found.values():
        assert min(times) - slack <= low <= high <= max(times) + slack
    assert found[50][0] <= found[90][0] + slack and found[50][1] <= found[99][1] + slack
    assert percentile_intervals(times, (50, 90, 99), seed=seed) == found


def test_intervals_of_independent_times_hold_the_median_and_are_as_wide_as_they_should_be():
    trials, count, held, widths = 200, 100, 0, []
    for trial in range(trials):
        times = 1000 + 10 * np.random.default_rng(trial).normal(size=count)
        low, high = percentile_intervals(times, (50,), seed=trial)[50]
        held += low <= 1000 <= high
        widths.append(high - low)
    # Binomial with 0.95 of 200: mean 190, standard deviation 3.1; five of them below is 174.
    assert held >= 174
    # The median of n normal values has the standard deviation sqrt(pi / 2 n): two times 1.96 of these.
    expected = 2 * 1.96 * 10 * math.sqrt(math.pi / 2 / count)
    assert np.median(widths) == pytest.approx(expected, rel=0.2)


def test_times_that_depend_on_each_other_get_longer_blocks_and_wider_intervals():
    dependent = autoregressive(1000, 0.9, 0)
    shuffled = np.random.default_rng(0).permutation(dependent)
    length = block_length((dependent > np.median(dependent)).astype(float))
    assert 5 <= length <= 3 * math.sqrt(1000)
    assert block_length((shuffled > np.median(shuffled)).astype(float)) < length
    widths = [np.subtract(*percentile_intervals(1000 + series, (50,))[50][::-1]) for series in (dependent, shuffled)]
    # The mean of such a series varies (1 + 0.9) / (1 - 0.9) = 19 times as much: 4.4 times as wide; the median less.
    assert widths[0] > 2 * widths[1]


@pytest.mark.parametrize("series", [np.zeros(100), np.arange(15.0), np.ones(1)])
def test_short_and_constant_series_get_blocks_of_one(series):
    assert block_length(series) == 1


def test_blocks_stay_within_a_third_of_the_series():
    assert block_length(np.repeat([0.0, 1.0], 30)) <= 20
    assert 1 <= block_length(np.tile([0.0, 1.0], 50)) <= 30


def test_blocks_are_consecutive_and_go_round_in_a_circle():
    seen = []
    bootstrap.draws_of(np.arange(10.0), 4, lambda drawn: seen.append(drawn) or drawn[:, :1].T, seed=0)
    series = np.concatenate(seen)
    assert series.shape == (bootstrap.DRAWS, 10)
    blocks = np.concatenate([series[:, :4], series[:, 4:8]])
    assert (np.diff(blocks, axis=1) % 10 == 1).all()
    # Each value begins a block as often as another: 3998 draws of ten, 400 each, standard deviation 19.
    assert np.abs(np.bincount(blocks[:, 0].astype(int)) - 399.8).max() < 5 * 19


def test_very_many_times_are_drawn_in_parts_and_less_often():
    times = np.random.default_rng(0).integers(1, 1000, 150_000)
    largest = []
    drawn = bootstrap.draws_of(times, 1, lambda part: largest.append(part.size) or part[:, :1].T, seed=0)[0]
    # 20 million values of 150,000: 133 draws, and 199 at least.
    assert len(drawn.values) == 199
    assert max(largest) <= 1 << 20


def test_more_confidence_is_a_wider_interval_up_to_the_outermost_draws():
    draws = percentile_draws(np.random.default_rng(1).integers(1, 1000, 50), (50,))[50]
    ends = [draws.interval(confidence) for confidence in (0.5, 0.95, 0.99, 1 - 1e-12)]
    assert all(wide[0] <= narrow[0] <= narrow[1] <= wide[1] for narrow, wide in zip(ends, ends[1:]))
    assert ends[-1] == (draws.values[0], draws.values[-1])


def test_many_blocks_need_no_more_than_the_normal_share():
    assert bootstrap._expanded(0.025, 10**6) == pytest.approx(0.025, rel=1e-4)
    # Of 11 blocks: Student's t with ten degrees of freedom is 2.228 there (any table).
    assert bootstrap._expanded(0.025, 11) == pytest.approx(NormalDist().cdf(-2.228 * math.sqrt(11 / 10)), rel=1e-2)
    assert bootstrap._expanded(0.025, 1) == 0


def test_ratios_of_pairs_hardly_mind_what_meets_both():
    """Every other stretch of time both run at half the clock, which moves the medians, and not the ratio."""
    random = np.random.default_rng(3)
    slow = np.where(np.arange(90) // 15 % 2, 2.0, 1.0)
    first, second = (1e6 * slow * random.lognormal(0, 0.01, 90) for _ in range(2))
    ratio, low, high = ratio_interval(first, second)
    assert abs(ratio - 1) < 0.01 and high - low < 0.02
    assert ratio_draws(first, second)[0] == ratio


def test_what_differs_from_process_to_process_widens_the_interval():
    """In each process the first is faster or slower by some 3 %, which no number of rounds shows."""
    trials, processes, rounds, held, single = 100, 6, 40, 0, 0
    for trial in range(trials):
        random = np.random.default_rng(trial)
        apart = np.repeat(random.lognormal(0, 0.03, processes), rounds)
        first, second = (1e6 * random.lognormal(0, 0.005, processes * rounds) for _ in range(2))
        _, low, high = ratio_interval(first * apart, second, sizes=[rounds] * processes, seed=trial)
        held += low <= 1 <= high
        _, low, high = ratio_interval((first * apart)[:rounds], second[:rounds], seed=trial)
        single += low <= 1 <= high
    # Binomial with 0.95 of 100: mean 95, standard deviation 2.2; five of them below is 84.
    assert held >= 84 and single < 50


def test_processes_of_different_lengths_are_drawn_whole(monkeypatch):
    seen = []
    values = np.concatenate([np.zeros(4), np.ones(10), np.full(1, 2.0)])
    found = bootstrap.draws_of(values, 3, lambda drawn: seen.append(drawn) or drawn[:, :1].T, 0, [4, 10, 1])
    series = np.concatenate(seen)
    assert found[0].blocks == 3
    # Three processes are drawn each time, and 15 // 3 values of each.
    assert series.shape == (bootstrap.DRAWS, 15)
    assert (series.reshape(-1, 3, 5) == series.reshape(-1, 3, 5)[:, :, :1]).all()
    # A third each of 5997 draws of a process: 1999, standard deviation sqrt(5997 * 2 / 9) = 36.5.
    assert np.abs(np.bincount(series[:, ::5].ravel().astype(int)) - 1999).max() < 5 * 36.5


def test_one_process_is_as_if_nothing_were_said():
    times = np.random.default_rng(0).integers(1, 1000, 50)
    assert percentile_intervals(times, (50,), sizes=[50]) == percentile_intervals(times, (50,))
