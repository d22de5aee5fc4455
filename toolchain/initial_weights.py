"""Weights of a layer that has not been trained, as Keras's initializers draw them, from a seed.

Every kernel has a stream of random numbers of its own, keyed by the seed and its node's name: a node's weights do not
depend on which other nodes there are, nor on their order. With fan_in = kh*kw*cin and fan_out = kh*kw*cout of a kernel
(kh, kw, cin, cout), all entries independent, so that the filters of a layer differ little in their norms:
    he_normal_fan_out   normal, cut off at two standard deviations, variance 2 / fan_out
                        (He et al. 2015, "Delving Deep into Rectifiers", equation 14)
    glorot_uniform      uniform on ±sqrt(6 / (fan_in + fan_out))
                        (Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
                        networks", equation 16)
A DepthwiseConv2D's kernel (kh, kw, cin, multiplier) is taken as if it were a Conv2D's, which is what Keras does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Standard deviation of a standard normal variable that is cut off at -2 and 2.
_CUT_DEVIATION = 0.87962566103423978


def he_normal_fan_out(seed: int, name: str, shape: Sequence[int]) -> np.ndarray:
    """A kernel of that shape (kh, kw, cin, cout), float32, for the node of that name. The seed is at least 0."""
    generator = _generator(seed, name)
    values = generator.standard_normal(math.prod(shape), dtype=np.float32)
    while (outside := np.flatnonzero(np.abs(values) > 2)).size:
        values[outside] = generator.standard_normal(outside.size, dtype=np.float32)
    _, fan_out = _fans(shape)
    values *= np.float32(math.sqrt(2 / fan_out) / _CUT_DEVIATION)
    return values.reshape(shape)


def glorot_uniform(seed: int, name: str, shape: Sequence[int]) -> np.ndarray:
    """A kernel of that shape (kh, kw, cin, cout), float32, for the node of that name. The seed is at least 0."""
    values = _generator(seed, name).random(math.prod(shape), dtype=np.float32)
    limit = math.sqrt(6 / sum(_fans(shape)))
    values *= np.float32(2 * limit)
    values -= np.float32(limit)
    return values.reshape(shape)


def batch_norm(channels: int) -> dict[str, np.ndarray]:
    """The weights of a BatchNormalization that changes nothing but for its epsilon, (channels,) float32 each."""
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return {"gamma": ones, "beta": zeros, "moving_mean": zeros.copy(), "moving_variance": ones.copy()}


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    *window, inputs, outputs = shape
    return math.prod(window) * inputs, math.prod(window) * outputs
