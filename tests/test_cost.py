"""Parameters and FLOPs, by arithmetic; those of the published reference network are in test_yolov4.py."""

from typing import Any

import numpy as np
import pytest

from toolchain.cost import Cost, cost, node_costs
from toolchain.graph import Graph, Node


def _zeros(*shape: int) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _of(op: str, attributes: dict[str, Any], *inputs: tuple[int, ...], shared: str = "", **weights: np.ndarray) -> Cost:
    nodes = [Node(f"in_{index}", "InputLayer", (), {"shape": list(shape)}) for index, shape in enumerate(inputs)]
    node = Node("node", op, tuple(node.name for node in nodes), attributes, weights, shared)
    return node_costs(Graph("g", (*nodes, node), ("node",)))["node"]


def test_conv2d() -> None:
    found = _of("Conv2D", {"strides": 2, "padding": "same"}, (10, 10, 4), kernel=_zeros(3, 3, 4, 8), bias=_zeros(8))
    out = 5 * 5 * 8
    assert found == Cost(3 * 3 * 4 * 8 + 8, 0, 2 * out * 3 * 3 * 4 + out)


def test_conv2d_in_groups_without_bias() -> None:
    found = _of("Conv2D", {"groups": 2, "padding": "same"}, (10, 10, 4), kernel=_zeros(3, 3, 2, 8))
    assert found == Cost(3 * 3 * 2 * 8, 0, 2 * (10 * 10 * 8) * 3 * 3 * 2)


def test_an_activation_inside_a_convolution_counts_as_one_outside() -> None:
    plain = _of("Conv2D", {"activation": "relu"}, (10, 10, 4), kernel=_zeros(1, 1, 4, 8))
    gated = _of("Conv2D", {"activation": "silu"}, (10, 10, 4), kernel=_zeros(1, 1, 4, 8))
    assert gated.flops - plain.flops == 10 * 10 * 8


def test_depthwise_and_separable_convolutions() -> None:
    found = _of(
        "DepthwiseConv2D",
        {"padding": "same", "depth_multiplier": 2},
        (6, 6, 4),
        kernel=_zeros(5, 5, 4, 2),
        bias=_zeros(8),
    )
    assert found == Cost(5 * 5 * 4 * 2 + 8, 0, 2 * (6 * 6 * 8) * 5 * 5 + 6 * 6 * 8)
    separable = _of(
        "SeparableConv2D",
        {"filters": 7, "padding": "same", "kernel_size": 3},
        (6, 6, 4),
        depthwise_kernel=_zeros(3, 3, 4, 1),
        pointwise_kernel=_zeros(1, 1, 4, 7),
    )
    assert separable == Cost(3 * 3 * 4 + 4 * 7, 0, 2 * (6 * 6 * 4) * 3 * 3 + 2 * (6 * 6 * 7) * 4)


def test_dense_and_transposed_convolution() -> None:
    assert _of("Dense", {}, (12,), kernel=_zeros(12, 5), bias=_zeros(5)) == Cost(12 * 5 + 5, 0, 2 * 5 * 12 + 5)
    found = _of(
        "Conv2DTranspose", {"filters": 5, "strides": 2, "padding": "same"}, (6, 6, 4), kernel=_zeros(3, 3, 5, 4)
    )
    assert found == Cost(3 * 3 * 4 * 5, 0, 2 * (6 * 6 * 4) * 3 * 3 * 5)


@pytest.mark.parametrize(
    ("op", "attributes", "inputs", "flops"),
    [
        ("MaxPooling2D", {"pool_size": 5, "strides": 1, "padding": "same"}, [(8, 8, 3)], 8 * 8 * 3 * 25),
        ("MaxPooling2D", {}, [(8, 8, 3)], 4 * 4 * 3 * 4),
        ("AveragePooling2D", {"pool_size": [2, 3]}, [(8, 9, 3)], 4 * 3 * 3 * 6),
        ("GlobalAveragePooling2D", {}, [(8, 8, 3)], 8 * 8 * 3),
        ("Multiply", {}, [(8, 8, 3), (1, 1, 3)], 8 * 8 * 3),
        ("Multiply", {}, [(8, 8, 3), (8, 8, 3), (8, 8, 3)], 2 * 8 * 8 * 3),
        ("UpSampling2D", {}, [(8, 8, 3)], 2),
        ("Resize", {"height": 9, "width": 9}, [(8, 8, 3)], 0),
        ("Activation", {"activation": "silu"}, [(8, 8, 3)], 8 * 8 * 3),
        ("Activation", {"activation": "swish"}, [(8, 8, 3)], 8 * 8 * 3),
        ("Activation", {"activation": "mish"}, [(8, 8, 3)], 8 * 8 * 3),
        ("Activation", {"activation": "sigmoid"}, [(8, 8, 3)], 0),
        ("LeakyReLU", {}, [(8, 8, 3)], 0),
        ("Add", {}, [(8, 8, 3), (8, 8, 3)], 0),
        ("Concatenate", {}, [(8, 8, 3), (8, 8, 3)], 0),
        ("Rescaling", {"scale": 0.5}, [(8, 8, 3)], 8 * 8 * 3),
        ("Rescaling", {"scale": 1.0, "offset": 3.0}, [(8, 8, 3)], 0),
        ("ZeroPadding2D", {}, [(8, 8, 3)], 0),
        ("DarknetReorg", {"stride": 2}, [(8, 8, 4)], 0),
    ],
)
def test_layers_without_weights(op: str, attributes: dict[str, Any], inputs: list[tuple[int, ...]], flops: int) -> None:
    assert _of(op, attributes, *inputs) == Cost(0, 0, flops)


def test_statistics_and_frozen_layers_are_not_trainable() -> None:
    weights = {name: _zeros(3) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert _of("BatchNormalization", {}, (8, 8, 3), **weights) == Cost(2 * 3, 2 * 3, 0)
    assert _of("BatchNormalization", {"trainable": False}, (8, 8, 3), **weights) == Cost(0, 4 * 3, 0)
    normalization = _of("Normalization", {}, (8, 8, 3), mean=_zeros(3), variance=_zeros(3), count=_zeros())
    assert normalization == Cost(0, 3 + 3 + 1, 0)


def test_an_opaque_op_counts_its_parameters_and_is_named() -> None:
    attributes = {"recorded_shape": [7, 3], "non_trainable_weights": ["state"], "activation": "silu"}
    found = _of("Unheard", attributes, (7, 3), kernel=_zeros(3, 4), state=_zeros(5))
    assert found == Cost(3 * 4, 5, 0, ("node",))
    assert found.total == 3 * 4 + 5


def test_totals_count_shared_weights_once_and_their_operations_twice() -> None:
    nodes = (
        Node("in", "InputLayer", (), {"shape": [4, 4, 3]}),
        Node(
            "a", "Conv2D", ("in",), {"kernel_size": 1, "filters": 3}, {"kernel": _zeros(1, 1, 3, 3), "bias": _zeros(3)}
        ),
        Node("b", "Conv2D", ("a",), {"kernel_size": 1, "filters": 3}, shared_with="a"),
        Node("c", "Unheard", ("b",), {"recorded_shape": [1]}),
    )
    once = 2 * (4 * 4 * 3) * 3 + 4 * 4 * 3
    assert cost(Graph("g", nodes, ("c",))) == Cost(3 * 3 + 3, 0, 2 * once, ("c",))
