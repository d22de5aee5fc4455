"""Random weights: their spread is Keras's, and they depend on the seed and the name alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from toolchain.initial_weights import batch_norm, glorot_uniform, he_normal_fan_out

SHAPE = (3, 3, 64, 128)
BOTH = pytest.mark.parametrize("initial", [glorot_uniform, he_normal_fan_out])
Initial = Callable[[int, str, tuple[int, ...]], np.ndarray]


@BOTH
def test_the_seed_and_the_name_decide(initial: Initial) -> None:
    kernel = initial(1, "conv", SHAPE)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(initial(1, "conv", SHAPE), kernel)
    for seed, name in ((2, "conv"), (1, "conv_1"), (0, "conv")):
        assert not np.array_equal(initial(seed, name, SHAPE), kernel)


@BOTH
@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 96, 1)])
def test_the_variance_is_that_of_the_fans(initial: Initial, shape: tuple[int, ...]) -> None:
    window, fan_in, fan_out = math.prod(shape[:2]), math.prod(shape[:3]), math.prod(shape[:2]) * shape[3]
    # Of a uniform distribution on ±l the variance is l²/3.
    variance = {"glorot_uniform": 2 / (fan_in + fan_out), "he_normal_fan_out": 2 / fan_out}[initial.__name__]
    kernel = initial(3, "conv", shape)
    # A sample variance of n values has, at a kurtosis of at most 3, a relative standard error of at most sqrt(2/n).
    assert np.var(kernel) == pytest.approx(variance, rel=5 * math.sqrt(2 / (window * shape[2] * shape[3])))
    limit = {"glorot_uniform": math.sqrt(3), "he_normal_fan_out": 2 / 0.8796}[initial.__name__] * math.sqrt(variance)
    # One float32 epsilon for the multiplication and one for the subtraction.
    assert 0.99 * limit < np.abs(kernel).max() <= limit * (1 + 1e-4)


def test_the_filters_of_a_layer_have_nearly_equal_norms() -> None:
    norms = np.linalg.norm(glorot_uniform(1, "conv2d_1", (3, 3, 640, 1280)).reshape(-1, 1280), axis=0)
    # A squared norm is a sum of n = 3*3*640 squares u², whose deviation is sqrt(4/5) of their mean: the norm's relative
    # deviation is half of sqrt(0.8/n), 0.6 %. Five of them for the extremes of 1280.
    np.testing.assert_allclose(norms, norms.mean(), rtol=5 * math.sqrt(0.8 / (3 * 3 * 640)) / 2)


def test_a_fresh_batch_norm() -> None:
    assert {name: array.tolist() for name, array in batch_norm(2).items()} == {
        "gamma": [1, 1],
        "beta": [0, 0],
        "moving_mean": [0, 0],
        "moving_variance": [1, 1],
    }
