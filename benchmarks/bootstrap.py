"""Intervals of medians, of other percentiles and of ratios of times, by the block bootstrap.

Times of consecutive runs are not independent: a clock that falls, or another program that comes, meets many runs in a
row. The bootstrap (B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979) of
single runs would then give intervals that are too narrow. So blocks of consecutive runs are drawn (H. R. Künsch, "The
jackknife and the bootstrap for general stationary observations", Annals of Statistics 17, 1989), from a circle, so that
each run is drawn equally often (D. N. Politis and J. P. Romano, "A circular block-resampling procedure for stationary
data", in: Exploring the limits of bootstrap, 1992). How long a block is, the times themselves say: see block_length.
Runs that are independent get blocks of one.

Two copies of one file differ by some per cent in one process, and by others in the next, for the places of memory that
they happened to get (T. Mytkowicz and others, "Producing wrong data without doing anything obviously wrong", ASPLOS
2009): no number of runs shows that. Where there are times of several processes, processes are drawn first, and then
blocks of runs within each (T. Kalibera and R. Jones, "Rigorous benchmarking in reasonable time", ISMM 2013).

The ends are percentiles of the draws. As few blocks vary too little among themselves, the percentiles lie as far out as
Student's t with one degree of freedom less than there are blocks demands (the expanded percentile interval of T.
Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from deploy.errors import InputError

#: Of a bootstrap. With one less than a multiple of 40, both ends of the 95 % interval are draws themselves.
DRAWS = 1999
#: Of very many runs, whose intervals are narrow anyway: no more values are drawn, but these draws at least.
_MOST_VALUES, _LEAST_DRAWS = 20_000_000, 199
#: Drawn values that lie in memory at a time: 8 MB of indices, and as much of times.
_CHUNK = 1 << 20
#: Fewer runs than this do not show whether they depend on each other.
_LEAST_ORDERED = 16


class Draws(NamedTuple):
    """What a statistic came out as in series that were drawn."""

    #: (d,) float64, sorted.
    values: np.ndarray
    #: Of how many blocks each series was put together; of how many processes, where there are several.
    blocks: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper end; confidence: 0 to 1. Where there are too few draws for it, the outermost ones."""
        tail = _expanded((1 - confidence) / 2, self.blocks)
        outside = max(round((len(self.values) + 1) * tail) - 1, 0)
        return float(self.values[outside]), float(self.values[-1 - outside])


def percentile_intervals(
    times: Sequence[int], ranks: Sequence[int], *, sizes: Sequence[int] = (), seed: int = 0
) -> dict[int, tuple[float, float]]:
    """By rank the lower and upper end of the 95 % interval of that percentile (0 to 100, linear between ranks).

    times: (n,) of consecutive runs in any unit, one at least. sizes: how many of them come of each process, where there
    are several. Of a rank that few runs lie beyond (the 99th of fewer than some 500) the interval ends where the runs
    end, and is too narrow: a tail that was not seen cannot be drawn.
    """
    return {rank: draws.interval() for rank, draws in percentile_draws(times, ranks, sizes=sizes, seed=seed).items()}


def percentile_draws(
    times: Sequence[int], ranks: Sequence[int], *, sizes: Sequence[int] = (), seed: int = 0
) -> dict[int, Draws]:
    """The draws of percentile_intervals."""
    values = np.asarray(times, np.float64)
    # One length for all ranks, so that their intervals stand in order; the order of runs shows best at the median.
    length = block_length((values > np.median(values)).astype(np.float64))
    found = draws_of(values, length, lambda drawn: np.percentile(drawn, ranks, axis=1), seed, sizes)
    return dict(zip(ranks, found, strict=True))


def ratio_interval(
    first: Sequence[int], second: Sequence[int], *, sizes: Sequence[int] = (), seed: int = 0
) -> tuple[float, float, float]:
    """The median over all rounds of first / second, and the lower and upper end of its 95 % interval.

    first and second: times above 0 in one unit, (n,) each, that stand in the same order of rounds. sizes: how many of
    them come of each process, where there are several. The two times of a round lie so close together that a slow clock
    or others' work meets both, and their ratio keeps little of it; the ratio of the two medians would move with every
    such time. With first and second exchanged, all three are the reciprocals.

    Raises InputError where the two do not fit together.
    """
    ratio, draws = ratio_draws(first, second, sizes=sizes, seed=seed)
    return ratio, *draws.interval()


def ratio_draws(
    first: Sequence[int], second: Sequence[int], *, sizes: Sequence[int] = (), seed: int = 0
) -> tuple[float, Draws]:
    """The ratio of ratio_interval, and its draws."""
    pairs = np.array([first, second], np.float64) if len(first) == len(second) else np.empty((2, 0))
    if not pairs.size or not (pairs > 0).all():
        raise InputError(
            f"times are compared in pairs above 0: {len(first)} and {len(second)} came, or one was 0; give the times of"
            " one alternating run"
        )
    ratios = pairs[0] / pairs[1]
    middle = _median_ratio(ratios[None])[0]
    length = block_length(np.sign(ratios - middle))
    return float(middle), draws_of(ratios, length, lambda drawn: _median_ratio(drawn)[None], seed, sizes)[0]


def _median_ratio(ratios: np.ndarray) -> np.ndarray:
    """The median of each row: of an even number the geometric mean of the middle two, so that the reciprocal ratios
    have the reciprocal median."""
    count = ratios.shape[1]
    places = [(count - 1) // 2, count // 2]
    middle = np.partition(ratios, places, axis=1)[:, places]
    return np.where(middle[:, 0] == middle[:, 1], middle[:, 0], np.sqrt(middle[:, 0] * middle[:, 1]))


def _expanded(tail: float, blocks: int) -> float:
    """The share of draws beyond an end of the interval that leaves out `tail` on that side."""
    if blocks < 2:
        return 0.0
    return NormalDist().cdf(-math.sqrt(blocks / (blocks - 1)) * _student(tail, blocks - 1))


def _student(tail: float, freedom: int) -> float:
    """Where Student's t leaves `tail`, 0 to 0.5, above it: M. Abramowitz and I. A. Stegun, Handbook of mathematical
    functions, 26.7.5, without its last term; 0.02 too low at three degrees of freedom, less at more."""
    z = -NormalDist().inv_cdf(tail)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def draws_of(
    values: np.ndarray,
    length: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    sizes: Sequence[int] = (),
) -> list[Draws]:
    """Statistics of series that are drawn from values (n,) in blocks of that length.

    sizes: of the processes that values come of, one after the other, summing up to n. Each drawn process gives as many
    values as the mean one has. statistic takes series (rows, about n) and gives (s, rows). Less than 40 MB are needed
    beside the result.
    """
    each = np.array(sizes if len(sizes) > 1 else [len(values)])
    first = np.cumsum(each) - each
    share = max(1, len(values) // len(each))
    length = min(length, share)
    blocks = -(-share // length)
    draws = min(DRAWS, max(_LEAST_DRAWS, _MOST_VALUES // len(values) // 40 * 40 - 1))
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // len(values))
    found = []
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        process = generator.integers(0, len(each), (count, len(each)))
        size = each[process][:, :, None, None]
        begins = (generator.random((count, len(each), blocks, 1)) * size).astype(np.int64)
        places = (begins + np.arange(length)) % size + first[process][:, :, None, None]
        series = places.reshape(count, len(each), -1)[:, :, :share].reshape(count, -1)
        found.append(statistic(values[series]))
    independent = len(each) if len(each) > 1 else blocks
    return [Draws(drawn, independent) for drawn in np.sort(np.concatenate(found, axis=1), axis=1)]


def block_length(series: np.ndarray) -> int:
    """How many consecutive values (n,) hang together: the length of blocks for the circular block bootstrap.

    D. N. Politis and H. White, "Automatic block-length selection for the dependent bootstrap", Econometric Reviews 23,
    2004, section 3.2, with the constant of A. Patton, D. N. Politis and H. White's correction, Econometric Reviews 28,
    2009: (2 G² / D)^(1/3) n^(1/3), where G and D are sums over the autocovariances up to twice the lag from which on
    they cannot be told from 0. At most 3 √n and a third of the series, at least 1; 1 for a short or constant series.
    """
    count = len(series)
    if count < _LEAST_ORDERED:
        return 1
    quiet = max(5, math.ceil(math.sqrt(math.log10(count))))
    lags = min(math.ceil(math.sqrt(count)) + quiet, count - 1)
    centred = series - series.mean()
    covariance = np.array([centred[: count - lag] @ centred[lag:] for lag in range(lags + 1)]) / count
    if covariance[0] <= 0:
        return 1
    last = _last_dependent_lag(covariance / covariance[0], quiet, 2 * math.sqrt(math.log10(count) / count))
    if last == 0:
        return 1
    reach = min(2 * last, lags)
    lag = np.arange(1, reach + 1)
    # The flat-top window: 1 up to half of the reach, then falling to 0. Both sides of lag 0 are alike.
    weighted = np.minimum(1, 2 * (1 - lag / reach)) * covariance[1 : reach + 1]
    first_moment, spectrum = 2 * float(lag @ weighted), float(covariance[0] + 2 * weighted.sum())
    most = min(3 * math.sqrt(count), count / 3)
    if spectrum <= 0:  # values that alternate: each block of some takes in as much of the one as of the other
        return math.ceil(min(last, most))
    length = (2 * first_moment**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * count ** (1 / 3)
    return max(1, math.ceil(min(length, most)))


def _last_dependent_lag(correlation: np.ndarray, quiet: int, bound: float) -> int:
    """The last lag before `quiet` lags in a row whose correlations lie within the bound; else the last one outside."""
    outside = np.abs(correlation[1:]) >= bound
    for lag in range(len(outside) - quiet + 1):
        if not outside[lag : lag + quiet].any():
            return lag
    return int(np.flatnonzero(outside)[-1]) + 1
