"""How quantization_aware.py has a layer rounded: a QuantizeConfig of tensorflow-model-optimization, its two quantizers,
and a scheme that adds nothing to what is annotated.

Gradients pass through the rounding as if it were not there, and are 0 where a value is cut off (Jacob et al. 2018,
Quantization and training of neural networks, section 3). Only the process that trains imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.quantization.keras import (
    QuantizeConfig,
    QuantizeLayoutTransform,
    QuantizeRegistry,
    QuantizeScheme,
)
from tensorflow_model_optimization.quantization.keras.quantizers import Quantizer

#: Kernels of zeros have a step too.
_TINY = 1e-9


class KernelQuantizer(Quantizer):
    """Rounds a kernel to -127 to 127 steps, of a size of its own for each channel.

    channels: how many of the last axes count the channels: 1, or 2 of a depthwise kernel (kh, kw, cin, multiplier).
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        shape = inputs.shape.as_list()
        flat = tf.reshape(inputs, (-1, math.prod(shape[-self._channels :])))
        limit = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(flat), axis=0), _TINY))
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(flat, -limit, limit, 8, True)
        return tf.reshape(rounded, shape)

    def get_config(self) -> dict[str, Any]:
        return {"channels": self._channels}


class TensorQuantizer(Quantizer):
    """Rounds a tensor to 256 values between the moving averages of its least and its greatest, zero among them. The
    first batch sets them.

    old: the share of the old in the averages.
    """

    def __init__(self, old: float) -> None:
        self._old = old

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {
            key: layer.add_weight(name=f"{name}_{key}", shape=(), initializer="zeros", trainable=False)
            for key in ("min", "max", "seen")
        }

    def __call__(self, inputs: Any, training: bool, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        least, greatest = weights["min"], weights["max"]
        if training:
            old, inner = self._old * weights["seen"], list(range(1, len(inputs.shape)))
            ends = tf.reduce_min(inputs, inner), tf.reduce_max(inputs, inner)
            found = tf.minimum(tf.reduce_mean(ends[0]), 0.0), tf.maximum(tf.reduce_mean(ends[1]), 0.0)
            least, greatest = (
                variable.assign(old * variable + (1 - old) * tf.stop_gradient(value))
                for variable, value in zip((least, greatest), found, strict=True)
            )
            weights["seen"].assign(1.0)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, least, greatest, 8)

    def get_config(self) -> dict[str, Any]:
        return {"old": self._old}


class EightBit(QuantizeConfig):
    """Rounds the weight named kernel, "" for none, and the output where it is asked for."""

    def __init__(self, kernel: str, output: bool, old: float) -> None:
        self._kernel = kernel
        self._output = output
        self._old = old

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        if not self._kernel:
            return []
        channels = 2 if self._kernel == "depthwise_kernel" else 1
        return [(getattr(layer, self._kernel), KernelQuantizer(channels))]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for weight in quantize_weights:
            setattr(layer, self._kernel, weight)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        return None

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [TensorQuantizer(self._old)] if self._output else []

    def get_config(self) -> dict[str, Any]:
        return {"kernel": self._kernel, "output": self._output, "old": self._old}


class AsAnnotated(QuantizeScheme):
    """Rounds what is annotated, and nothing else."""

    def get_layout_transformer(self) -> Any:
        return _AsItIs()

    def get_quantize_registry(self) -> Any:
        return _KnowsNothing()


class _AsItIs(QuantizeLayoutTransform):
    def apply(self, model: Any, layer_quantize_map: Any) -> tuple[Any, Any]:
        return model, layer_quantize_map


class _KnowsNothing(QuantizeRegistry):
    def supports(self, layer: Any) -> bool:
        return False

    def get_quantize_config(self, layer: Any) -> None:
        return None
