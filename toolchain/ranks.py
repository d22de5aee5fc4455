"""How many channels a Tucker-2 decomposition keeps: by variational Bayes, by energy, by ratio, or as told.

Every rule but the ratio looks at the eigenvalues of an unfolding's Gram matrix: for the input mode the unfolding of a
kernel (kh, kw, cin, cout) is (cin, kh*kw*cout), for the output mode (cout, kh*kw*cin). An eigenvalue is a squared
singular value; no singular value decomposition of the unfolding itself is made.

VBMF: Nakajima, Sugiyama, Babacan, Tomioka 2013, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization", JMLR 14. An observed matrix (L, M), L <= M, is low rank plus Gaussian noise of variance s2. With
alpha = L/M and tau = 2.5129 sqrt(alpha) (equation 30's approximation) a component of eigenvalue g is signal where
    g > M * s2 * x,   x = (1 + tau) * (1 + alpha / tau)
and s2 is the minimum of the free energy (theorem 3), which is one-dimensional:
    F(s2) = sum over the noise of (y - log y)
          + sum over the signal of (y - t + log((t + 1) / y) + alpha * log(t / alpha + 1))
    y = g / (M * s2),   t = (y - (1 + alpha) + sqrt((y - (1 + alpha))^2 - 4 alpha)) / 2
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from deploy.errors import InputError

#: Noise variances looked at, evenly in their logarithm, before the best is refined.
_GRID = 256
#: Golden-section steps: each takes the bracket to 0.618 of its width, 40 to some 4e-9 of it.
_STEPS = 40
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How the ranks of a layer are found: exactly one of vbmf, energy and ratio, or layers alone.

    Raises InputError for a value outside its range, and for more or less than one rule.
    """

    #: Calibration ratio in [-1, 1]. With v the VBMF estimate and C the channels a rank is v + int((C - v) * vbmf), for
    #: a negative ratio v - int((C - v) * |vbmf|), and never below 1.
    vbmf: float | None = None
    #: With vbmf: v as shares in [0, 1] of the input and of the output channels, rounded, in place of the estimate.
    v: tuple[float, float] | None = None
    #: In (0, 1]: the smallest rank whose eigenvalues hold this share of their sum, the squared norm.
    energy: float | None = None
    #: In (0, 1]: a rank is int(C * ratio), and never below 1.
    ratio: float | None = None
    #: Ranks of the input and the output channels of layers by their exact name; before every rule.
    layers: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = [name for name in ("vbmf", "energy", "ratio") if getattr(self, name) is not None]
        if len(rules) > 1 or not (rules or self.layers):
            raise InputError(
                f"ranks follow one rule, vbmf, energy or ratio: {' and '.join(rules) or 'none'} came; give exactly one,"
                " or ranks for single layers alone"
            )
        if self.v is not None and rules != ["vbmf"]:
            raise InputError("v stands in place of what vbmf estimates: vbmf did not come; give it too, or leave v out")
        _check_range("vbmf", self.vbmf, -1, 1)
        _check_range("energy", self.energy, 0, 1, open_below=True)
        _check_range("ratio", self.ratio, 0, 1, open_below=True)
        for share in self.v or ():
            _check_range("v", share, 0, 1)
        for name, pair in self.layers.items():
            if len(pair) != 2 or not all(isinstance(rank, int) and rank >= 1 for rank in pair):
                raise InputError(
                    f"a layer has two ranks, of the input and the output channels, each at least 1: {tuple(pair)} came"
                    f" for {name!r}; correct them"
                )

    @property
    def only_layers(self) -> bool:
        """Whether layers that are not named have no ranks."""
        return self.vbmf is None and self.energy is None and self.ratio is None


def _check_range(name: str, value: float | None, low: float, high: float, *, open_below: bool = False) -> None:
    if value is None or (low <= value <= high and not (open_below and value == low)):
        return
    raise InputError(f"{name} lies {'above' if open_below else 'from'} {low} up to {high}: {value} came; correct it")


def layer_ranks(
    ranks: Ranks, name: str, kernel: tuple[int, ...], spectra: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[int, int]:
    """Ranks (input, output) of the layer of that name with a kernel of shape (kh, kw, cin, cout), each from 1 to its
    channels.

    Args:
        spectra: gives the Gram eigenvalues of the input mode's unfolding, (cin,), and the output mode's, (cout,),
            descending; asked only by rules that need them.

    Raises InputError where ranks are given that are above the layer's channels.
    """
    kh, kw, cin, cout = kernel
    if name in ranks.layers:
        given = ranks.layers[name]
        if given[0] > cin or given[1] > cout:
            raise InputError(
                f"ranks are at most a layer's channels: {given} came for {name!r}, which has {cin} in and {cout} out;"
                " lower them"
            )
        return given
    if ranks.ratio is not None:
        return max(1, int(cin * ranks.ratio)), max(1, int(cout * ranks.ratio))
    if ranks.vbmf is not None and ranks.v is not None:
        shares = ranks.v
        return (
            _calibrated(round(cin * shares[0]), cin, ranks.vbmf),
            _calibrated(round(cout * shares[1]), cout, ranks.vbmf),
        )
    of_input, of_output = spectra()
    if ranks.energy is not None:
        return energy_rank(of_input, ranks.energy), energy_rank(of_output, ranks.energy)
    if ranks.vbmf is not None:
        return (
            _calibrated(evbmf_rank(of_input, cin, kh * kw * cout), cin, ranks.vbmf),
            _calibrated(evbmf_rank(of_output, cout, kh * kw * cin), cout, ranks.vbmf),
        )
    raise ValueError(f"no rule gives the ranks of {name!r}: only_layers is to be asked first")


def _calibrated(estimate: int, channels: int, ratio: float) -> int:
    """The estimate moved by the ratio: towards all channels where it is positive, down where it is negative."""
    step = int((channels - estimate) * abs(ratio))
    return min(channels, max(1, estimate + (step if ratio >= 0 else -step)))


def energy_rank(eigenvalues: np.ndarray, share: float) -> int:
    """Smallest number, at least 1, of the largest of the eigenvalues (L,) that hold the share, in (0, 1], of their sum.

    Negative eigenvalues are rounding errors of a Gram matrix and count as 0; a share of 1 is met up to rounding.
    """
    held = np.cumsum(np.sort(np.maximum(eigenvalues.astype(np.float64), 0))[::-1])
    if held[-1] <= 0:
        return 1
    # A cumulative sum of L terms is exact to about L roundings of the total.
    slack = held.size * np.finfo(np.float64).eps
    return int(np.searchsorted(held, (share - slack) * held[-1])) + 1


def evbmf_rank(eigenvalues: np.ndarray, rows: int, columns: int) -> int:
    """Number of components of a matrix (rows, columns) that are signal and not noise, by analytic empirical VBMF.

    Args:
        eigenvalues: of a Gram matrix of it, from either side: squared singular values, and more zeros where the side
            is the longer one. In any order, any scale.
        rows, columns: its shape; a matrix and its transposed have the same rank.

    0 where nothing stands out of the noise. Without any noise, all components above the rounding of float64.
    """
    short, long = sorted((rows, columns))
    values = np.sort(eigenvalues.astype(np.float64))[::-1][:short]
    if values[0] <= 0:
        return 0
    # A Gram matrix is exact to its largest eigenvalue times the rounding: what is smaller is not known, and a zero
    # would have no logarithm.
    values = np.maximum(values / values[0], short * np.finfo(np.float64).eps)
    alpha = short / long
    limit = _signal_limit(alpha)
    noise = _noise_variance(values, long, alpha, limit)
    return int(np.count_nonzero(values > long * noise * limit))


def _signal_limit(alpha: float) -> float:
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(values: np.ndarray, long: int, alpha: float, limit: float) -> float:
    """The noise variance of least free energy between the bounds of the paper's theorem 3; values (L,) descending."""
    most = math.ceil(values.size / (1 + alpha)) - 1  # components at most
    low = max(values[min(most, values.size - 1)] / (long * limit), float(np.mean(values[most:])) / long)
    high = float(np.sum(values)) / (values.size * long)
    if low >= high:
        return high
    # The free energy may have several minima: a grid finds the lowest's neighbourhood, golden sections its place.
    grid = np.linspace(math.log(low), math.log(high), _GRID)
    energies = [_free_energy(math.exp(point), values, long, alpha, limit) for point in grid]
    best = int(np.argmin(energies))
    left, right = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    for _ in range(_STEPS):
        inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        if _free_energy(math.exp(inner), values, long, alpha, limit) <= _free_energy(
            math.exp(outer), values, long, alpha, limit
        ):
            right = outer
        else:
            left = inner
    return math.exp((left + right) / 2)


def _free_energy(noise: float, values: np.ndarray, long: int, alpha: float, limit: float) -> float:
    scaled = values / (long * noise)
    signal, rest = scaled[scaled > limit], scaled[scaled <= limit]
    above = signal - (1 + alpha)
    # Above the limit the root's argument is positive: limit >= (1 + sqrt(alpha))^2.
    tau = 0.5 * (above + np.sqrt(above**2 - 4 * alpha))
    of_signal = signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1)
    return float(np.sum(rest - np.log(rest)) + np.sum(of_signal))
