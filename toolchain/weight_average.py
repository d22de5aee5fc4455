"""The average of the weights that a training passes through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops


class WeightAverage:
    """The exponential moving average of a network's weights, batch norm's statistics among them: Keras's own leaves
    these out, and weights of some time ago do not go with the statistics of now.

    With t the steps so far, the share of the old is at most (1 + t) / (10 + t): the first weights are soon forgotten.
    """

    def __init__(self, network: Any, share: float) -> None:
        self._share = share
        self._variables = [one for one in network.variables if "float" in str(one.dtype)]
        self.values = [
            keras.Variable(ops.convert_to_numpy(one), trainable=False, dtype=one.dtype) for one in self._variables
        ]
        self._mix = self._mixed
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._mix = tf.function(self._mixed)

    def _mixed(self, new: Any) -> None:
        for average, variable in zip(self.values, self._variables, strict=True):
            average.assign_add(new * (variable - average))

    def update(self, steps: int) -> None:
        """After a step; steps: how many there were before."""
        self._mix(ops.convert_to_tensor(1 - min(self._share, (1 + steps) / (10 + steps)), "float32"))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the network's weights for as long as the block runs."""
        raw = [np.array(ops.convert_to_numpy(one)) for one in self._variables]
        for variable, average in zip(self._variables, self.values, strict=True):
            # A copy: JAX gives buffers away, each once.
            variable.assign(np.array(ops.convert_to_numpy(average)))
        try:
            yield
        finally:
            for variable, array in zip(self._variables, raw, strict=True):
                variable.assign(array)
