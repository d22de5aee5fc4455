"""What removed channels gave on average, given back: exact where they are constant."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from toy_network import Layers

from deploy.errors import InputError
from toolchain.bias_correction import correct_biases, lost_mean
from toolchain.channels import analyse, remove
from toolchain.graph import Graph, Node
from toolchain.shapes import shapes

_SIDE = 6


def _outputs(graph: Graph, pictures: np.ndarray) -> np.ndarray:
    from toolchain.keras_writer import to_keras

    return np.asarray(to_keras(graph)(pictures))


def _net() -> Layers:
    """A layer "first" of 8 channels, of which 1, 4 and 6 have no kernel: they are constant."""
    net = Layers()
    net.nodes[0] = Node("image", "InputLayer", (), {"shape": [_SIDE, _SIDE, 3]})
    net.conv("first", "image", 3, 8)
    kernel = net.nodes[-1].weights["kernel"].copy()
    kernel[..., _CONSTANT] = 0
    bias = net.random.normal(0, 1, 8).astype(np.float32)
    attributes = {**net.nodes[-1].attributes, "use_bias": True}
    net.nodes[-1] = dataclasses.replace(net.nodes[-1], weights={"kernel": kernel, "bias": bias}, attributes=attributes)
    return net


_CONSTANT = [1, 4, 6]
#: The convolutions that read it must see no zeros of a padding, which have another mean.
_VALID = {"padding": "valid"}


def _read_directly() -> Layers:
    net = _net()
    net.conv("last", "first", 8, 5, **_VALID)
    return net


def _read_with_a_bias() -> Layers:
    net = _read_directly()
    weights = {**net.nodes[-1].weights, "bias": np.ones(5, np.float32)}
    attributes = {**net.nodes[-1].attributes, "use_bias": True, "activation": "relu"}
    net.nodes[-1] = dataclasses.replace(net.nodes[-1], weights=weights, attributes=attributes)
    return net


def _read_before_a_batch_norm() -> Layers:
    net = _read_directly()
    net.norm("norm", "last", 5)
    return net


def _read_before_a_batch_norm_and_a_sum() -> Layers:
    net = _read_before_a_batch_norm()
    net.add("sum", "Add", "norm", "last")
    return net


def _read_after_an_activation() -> Layers:
    net = _net()
    net.add("leaky", "LeakyReLU", "first", negative_slope=0.1)
    net.conv("last", "leaky", 8, 5, activation="silu", **_VALID)
    return net


def _read_through_a_depthwise_layer() -> Layers:
    net = _net()
    kernel = net.random.normal(0, 0.3, (3, 3, 8, 2)).astype(np.float32)
    settings = {"kernel_size": [3, 3], "depth_multiplier": 2, "use_bias": False}
    net.add("depthwise", "DepthwiseConv2D", "first", weights={"kernel": kernel}, **settings)
    net.conv("last", "depthwise", 16, 5, **_VALID)
    return net


def _separable() -> Layers:
    net = _net()
    weights = {
        "depthwise_kernel": net.random.normal(0, 0.3, (3, 3, 8, 2)).astype(np.float32),
        "pointwise_kernel": net.random.normal(0, 0.3, (1, 1, 16, 5)).astype(np.float32),
    }
    settings = {"filters": 5, "kernel_size": [3, 3], "depth_multiplier": 2, "use_bias": False}
    net.add("last", "SeparableConv2D", "first", weights=weights, **settings)
    return net


def _transposed() -> Layers:
    """Stride and kernel 2: every output has one tap."""
    net = _net()
    kernel = net.random.normal(0, 0.3, (2, 2, 5, 8)).astype(np.float32)
    # With one kernel for all four taps, so that all outputs have the mean that the correction gives them.
    kernel[:] = kernel[0, 0]
    settings = {"filters": 5, "kernel_size": [2, 2], "strides": [2, 2], "padding": "valid", "use_bias": False}
    net.add("last", "Conv2DTranspose", "first", weights={"kernel": kernel}, **settings)
    return net


def _dense() -> Layers:
    net = _net()
    net.add("flat", "Flatten", "first")
    kernel = net.random.normal(0, 0.1, (_SIDE * _SIDE * 8, 5)).astype(np.float32)
    net.add("last", "Dense", "flat", weights={"kernel": kernel}, units=5, use_bias=False)
    return net


_NETS = (
    _read_directly,
    _read_with_a_bias,
    _read_before_a_batch_norm,
    _read_before_a_batch_norm_and_a_sum,
    _read_after_an_activation,
    _read_through_a_depthwise_layer,
    _separable,
    _transposed,
    _dense,
)


def _means(graph: Graph, pictures: np.ndarray, asked: list[str]):  # type: ignore[no-untyped-def]
    def measure(nodes: Sequence[str]) -> Mapping[str, np.ndarray]:
        asked.extend(nodes)
        inside = dataclasses.replace(graph, outputs=tuple(nodes))
        values = [_outputs(dataclasses.replace(inside, outputs=(node,)), pictures) for node in nodes]
        return {
            node: value.mean(axis=tuple(range(value.ndim - 1)), dtype=np.float64)
            for node, value in zip(nodes, values, strict=True)
        }

    return measure


@pytest.mark.parametrize("make", _NETS)
def test_constant_channels_leave_without_a_trace(make) -> None:  # type: ignore[no-untyped-def]
    graph = Graph("net", tuple(make().nodes), (make().nodes[-1].name,))
    channels = analyse(graph, [node.name for node in graph.nodes])
    removed = channels.symbols["first"][_CONSTANT].tolist()
    pictures = np.random.default_rng(2).normal(0, 1, (2, _SIDE, _SIDE, 3)).astype(np.float32)
    asked: list[str] = []
    pruned = remove(graph, channels, removed)
    corrected = correct_biases(graph, pruned, channels, removed, _means(graph, pictures, asked))
    assert asked == list(graph.by_name["last"].inputs)
    whole = _outputs(graph, pictures)
    # What goes is exactly what is added: sums of up to 6 * 6 * 8 terms in another order, sqrt(288) * 2^-24 = 1e-6, and
    # a batch norm makes that up to 3 times as much of its own output.
    np.testing.assert_allclose(_outputs(corrected, pictures), whole, rtol=0, atol=4e-6 * max(1, np.abs(whole).max()))
    assert np.abs(_outputs(pruned, pictures) - whole).max() > 1e-2
    assert shapes(corrected) == shapes(pruned)
    # A batch norm that alone follows takes it, so that the network gets no more parameters.
    biased = make is not _read_before_a_batch_norm
    assert ("bias" in corrected.by_name["last"].weights) == biased


def test_the_mean_of_a_grouped_convolution_comes_of_its_groups() -> None:
    random = np.random.default_rng(4)
    kernel = random.normal(size=(3, 3, 2, 9)).astype(np.float32)
    average = random.normal(size=6)
    node = Node("node", "Conv2D", ("in",), {"groups": 3}, {"kernel": kernel})
    expected = [average[2 * (o // 3) :][:2] @ kernel[..., o].astype(float).sum((0, 1)) for o in range(9)]
    np.testing.assert_allclose(lost_mean(node, average, (5, 5, 6), (3, 3, 9)), expected, rtol=1e-12)


def test_no_reader_lost_anything() -> None:
    graph = Graph("net", tuple(_read_directly().nodes), ("last",))
    channels = analyse(graph, ["first"])

    def never(nodes: Sequence[str]) -> Mapping[str, np.ndarray]:
        raise AssertionError(nodes)

    assert correct_biases(graph, graph, channels, [], never) is graph


@pytest.mark.parametrize("given", [{}, {"first": np.zeros(7)}, {"first": np.full(8, np.nan)}])
def test_means_that_are_none(given: Mapping[str, np.ndarray]) -> None:
    graph = Graph("net", tuple(_read_directly().nodes), ("last",))
    channels = analyse(graph, ["first"])
    removed = channels.symbols["first"][:2].tolist()
    with pytest.raises(InputError, match="finite mean of every channel: 'first' has 8 channels"):
        correct_biases(graph, remove(graph, channels, removed), channels, removed, lambda nodes: given)
