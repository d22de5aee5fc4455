"""Ranks: the rules by arithmetic, and VBMF on matrices whose rank is known."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain import ranks as module
from toolchain.ranks import Ranks, energy_rank, evbmf_rank, layer_ranks


def _never() -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("this rule needs no eigenvalues")


def _noisy(seed: int, rows: int, columns: int, rank: int, signal: float) -> np.ndarray:
    """A matrix of that rank plus noise of standard deviation 1; its singular values are `signal` times the largest
    that noise alone has, sqrt(rows) + sqrt(columns)."""
    random = np.random.default_rng(seed)
    left, _ = np.linalg.qr(random.normal(size=(rows, max(rank, 1))))
    right, _ = np.linalg.qr(random.normal(size=(columns, max(rank, 1))))
    size = signal * (math.sqrt(rows) + math.sqrt(columns)) if rank else 0.0
    return size * left @ right.T + random.normal(size=(rows, columns))


def _gram(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrix @ matrix.T)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({}, "none came"),
        ({"vbmf": 0.2, "ratio": 0.2}, "vbmf and ratio came"),
        ({"vbmf": 0.1, "energy": 0.2, "ratio": 0.2}, "vbmf and energy and ratio came"),
        ({"ratio": 0.2, "v": (0.0, 0.0)}, "vbmf did not come"),
        ({"vbmf": 1.5}, "vbmf lies from -1 .* 1.5 came"),
        ({"vbmf": math.nan}, "vbmf lies from -1 .* nan came"),
        ({"energy": 0.0}, "energy lies above 0 .* 0.0 came"),
        ({"ratio": 1.1}, "ratio lies above 0 .* 1.1 came"),
        ({"vbmf": 0.2, "v": (0.5, -0.1)}, "v lies from 0 .* -0.1 came"),
        ({"layers": {"a": (0, 3)}}, "each at least 1: .* for 'a'"),
        ({"layers": {"a": (1, 2, 3)}}, "two ranks"),
    ],
)
def test_settings_that_cannot_be(given_settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ranks(**given_settings)


def test_a_ratio_is_a_share_of_the_channels_and_never_none() -> None:
    kernel = (3, 3, 336, 672)
    assert layer_ranks(Ranks(ratio=0.2), "a", kernel, _never) == (67, 134)  # 67.2 and 134.4
    assert layer_ranks(Ranks(ratio=1.0), "a", kernel, _never) == (336, 672)
    assert layer_ranks(Ranks(ratio=0.001), "a", kernel, _never) == (1, 1)


def test_the_calibration_ratio_moves_the_estimate() -> None:
    kernel = (3, 3, 640, 1280)
    estimate = (71, 38)  # 0.05547 * 640 is 35.5 of the inputs, and so on; here whole numbers
    shares = (71 / 640, 38 / 1280)
    moved = {
        0.0: estimate,
        1.0: (640, 1280),
        0.2: (71 + 113, 38 + 248),  # 0.2 * 569 is 113.8, 0.2 * 1242 is 248.4
        -0.05: (71 - 28, 1),  # 28.45; 62.1 is more than the 38 there are
        -1.0: (1, 1),
    }
    for ratio, expected in moved.items():
        assert layer_ranks(Ranks(vbmf=ratio, v=shares), "a", kernel, _never) == expected
    assert layer_ranks(Ranks(vbmf=0.2, v=(0.0, 0.0)), "a", kernel, _never) == (128, 256)


def test_ranks_of_single_layers_come_first() -> None:
    ranks = Ranks(ratio=0.5, layers={"a": (3, 4)})
    assert layer_ranks(ranks, "a", (3, 3, 8, 8), _never) == (3, 4)
    assert layer_ranks(ranks, "b", (3, 3, 8, 8), _never) == (4, 4)
    assert not ranks.only_layers
    assert Ranks(layers={"a": (3, 4)}).only_layers


@pytest.mark.parametrize("pair", [(9, 4), (3, 17)])
def test_ranks_above_the_channels_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="'a', which has 8 in and 16 out"):
        layer_ranks(Ranks(layers={"a": pair}), "a", (3, 3, 8, 16), _never)


def test_energy_takes_the_largest_eigenvalues() -> None:
    eigenvalues = np.array([1.0, 4.0, 3.0, 2.0])  # of 10: 4, 7, 9, 10
    for share, rank in ((0.1, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.71, 3), (0.9, 3), (0.91, 4), (1.0, 4)):
        assert energy_rank(eigenvalues, share) == rank


def test_energy_of_all_means_all_that_is_not_rounding() -> None:
    assert energy_rank(np.array([5.0, 3.0, -1e-17, 1e-17]), 1.0) == 2
    assert energy_rank(np.zeros(3), 1.0) == 1


def test_energy_and_vbmf_look_at_each_mode() -> None:
    wide, high = _noisy(0, 20, 9 * 30, 4, 3), _noisy(1, 30, 9 * 20, 7, 3)

    def spectra() -> tuple[np.ndarray, np.ndarray]:
        return _gram(wide), _gram(high)

    assert layer_ranks(Ranks(vbmf=0.0), "a", (3, 3, 20, 30), spectra) == (4, 7)
    expected = energy_rank(_gram(wide), 0.8), energy_rank(_gram(high), 0.8)
    assert layer_ranks(Ranks(energy=0.8), "a", (3, 3, 20, 30), spectra) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 8), st.sampled_from([(40, 60), (40, 400), (64, 64), (100, 50)]))
def test_vbmf_finds_the_rank_of_a_low_rank_matrix_with_noise(seed: int, rank: int, shape: tuple[int, int]) -> None:
    # Noise alone has no singular value far above sqrt(rows) + sqrt(columns) (Marchenko and Pastur); twice that is
    # signal, whatever the draw.
    matrix = _noisy(seed, *shape, rank, signal=2)
    assert evbmf_rank(_gram(matrix), *shape) == rank
    assert evbmf_rank(_gram(matrix.T), *reversed(shape)) == rank
    # Powers of two change no digit.
    assert evbmf_rank(_gram(matrix) * 2.0**-60, *shape) == rank


def test_vbmf_of_matrices_without_noise() -> None:
    assert evbmf_rank(np.zeros(5), 5, 9) == 0
    assert evbmf_rank(_gram(np.outer(np.arange(1, 7), np.arange(1, 31))), 6, 30) == 1
    assert evbmf_rank(np.array([7.0]), 1, 20) in (0, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 3), st.sampled_from([(10, 12), (30, 300), (50, 50)]))
def test_the_noise_variance_has_no_more_free_energy_than_scipys(
    seed: int, signal: float, shape: tuple[int, int]
) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    values = np.sort(_gram(_noisy(seed, *shape, 4, signal)))[::-1]
    long, alpha = shape[1], shape[0] / shape[1]
    limit = module._signal_limit(alpha)
    found = module._noise_variance(values, long, alpha, limit)

    def energy(noise: float) -> float:
        return module._free_energy(noise, values, long, alpha, limit)

    bounds = (float(values[-1]) / long, float(values.sum()) / (long * shape[0]))
    # A sum of 10 to 50 terms of order 1: differences of 1e-6 are the two searches' last steps.
    other = optimize.minimize_scalar(energy, bounds=bounds, method="bounded")
    assert energy(found) <= other.fun + 1e-6
