import dataclasses
import gzip

import numpy as np
import pytest

from file_kernels import file_kernels
from toolchain.graph import Graph, Node
from toolchain.kernel_report import folded, kernel_reports, packed_bytes, share_of_zeros
from toy_network import converted, toy_graph


def _small(first: np.ndarray, second: np.ndarray) -> Graph:
    nodes = (
        Node("image", "InputLayer", (), {"shape": [2, 2, 2]}),
        Node("a", "Conv2D", ("image",), {"filters": 2, "kernel_size": [1, 1]}, {"kernel": first}),
        Node("b", "Conv2D", ("a",), {"filters": 2, "kernel_size": [1, 1]}, {"kernel": second}),
        Node("again", "Conv2D", ("b",), {"filters": 2, "kernel_size": [1, 1]}, shared_with="b"),
    )
    return Graph("small", nodes, ("again",))


def _kernel(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 2, 2)


def test_zeros_and_values_are_counted_before_and_after() -> None:
    before = _small(_kernel(1, 2, 3, 0), _kernel(1, 2, 3, 4))
    after = _small(_kernel(1, 0, 0, 0), _kernel(5, 5, 6, 6))
    first, second, again = kernel_reports(before, after, {"a": "", "b": "", "again": "its weights are used twice"})
    assert (first.zeros, first.values, first.kernel) == ((1 / 4, 3 / 4), (4, 2), (1, 1, 2, 2))
    assert (second.zeros, second.values) == ((0, 0), (4, 2))
    assert (again.zeros, again.values, again.reason) == ((0, 0), (4, 2), "its weights are used twice")
    # A 1x1 convolution of 2 to 2 channels in 2x2 places.
    assert first.flops == (2 * 2 * 2 * 2 * 2,) * 2 and first.parameters == (4, 4) and again.parameters == (0, 0)
    # The shared kernel is there once.
    assert share_of_zeros(after) == 3 / 8


def test_kernels_are_folded_as_the_converter_does_it() -> None:
    graph = folded(toy_graph())
    # The predictions behind them are split by role in the file.
    names = ("conv_0", "conv_1", "grouped", "depthwise", "conv_2", "conv_3")
    for name, found in zip(names, file_kernels(converted() / "float32.tflite"), strict=False):
        weights = graph.by_name[name].weights
        kernel = weights.get("kernel", weights.get("depthwise_kernel"))
        assert kernel is not None
        expected = np.moveaxis(kernel, -1, 0)
        # One product of a weight and a scale, which is a quotient of a rounded root.
        np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(np.float32).eps, atol=0, err_msg=name)
    folded_kernel, kernel = (each.by_name["conv_0"].weights["kernel"] for each in (graph, toy_graph()))
    assert not np.array_equal(folded_kernel, kernel)


def test_a_batch_norm_that_is_not_alone_is_not_folded() -> None:
    graph = toy_graph()
    other = Node("conv_1_activation", "Add", ("conv_1", "conv_1_bn"))
    nodes = tuple(other if node.name == other.name else node for node in graph.nodes)
    changed = folded(dataclasses.replace(graph, nodes=nodes))
    for name, same in (("conv_1", True), ("conv_0", False)):
        kernels = [each.by_name[name].weights["kernel"] for each in (changed, graph)]
        assert np.array_equal(*kernels) == same


def test_a_depthwise_kernel_is_folded_by_channel_and_multiplier() -> None:
    kernel = np.ones((1, 1, 2, 2), np.float32)
    norm = {
        "gamma": np.array([1, 2, 3, 4], np.float32),
        "beta": np.array([0, 0, 0, 1], np.float32),
        "moving_mean": np.array([0, 0, 0, 5], np.float32),
        "moving_variance": np.full(4, 4 - 0.25, np.float32),
    }
    nodes = (
        Node("image", "InputLayer", (), {"shape": [2, 2, 2]}),
        Node("a", "DepthwiseConv2D", ("image",), {"depth_multiplier": 2}, {"depthwise_kernel": kernel}),
        Node("n", "BatchNormalization", ("a",), {"epsilon": 0.25}, norm),
    )
    graph = folded(Graph("net", nodes, ("n",)))
    expected = [[1 / 2, 2 / 2], [3 / 2, 4 / 2]]
    np.testing.assert_allclose(graph.by_name["a"].weights["depthwise_kernel"][0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(graph.by_name["n"].weights["beta"], [0, 0, 0, 1 - 5 * 4 / 2], rtol=1e-6)


def test_weights_are_packed_channel_by_channel() -> None:
    # Each output channel repeats a value of its own: in the file's order that is long runs.
    values = np.random.default_rng(0).normal(size=256).astype(np.float32)
    kernel = np.broadcast_to(values, (1, 1, 512, 256)).copy()
    nodes = (
        Node("image", "InputLayer", (), {"shape": [1, 1, 512]}),
        Node("a", "Conv2D", ("image",), {"filters": 256, "kernel_size": [1, 1]}, {"kernel": kernel}),
    )
    packed = packed_bytes(Graph("net", nodes, ("a",)))
    assert packed == len(gzip.compress(np.repeat(values, 512).tobytes(), 6, mtime=0))
    assert packed < kernel.nbytes / 50


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_random_weights_do_not_get_smaller_and_zeros_do(share: float) -> None:
    rng = np.random.default_rng(0)
    kernel = (rng.normal(size=(3, 3, 64, 64)) * (rng.random((3, 3, 64, 64)) >= share)).astype(np.float32)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [4, 4, 64]}),
        Node("a", "Conv2D", ("image",), {"filters": 64, "kernel_size": [3, 3]}, {"kernel": kernel}),
    )
    ratio = packed_bytes(Graph("net", nodes, ("a",))) / kernel.nbytes
    # A random float's lower 23 bits do not pack; of every tenth value and where it stands some 5 bytes remain.
    assert 0.85 < ratio < 1.01 if share == 0 else 0.1 < ratio < 0.2
