"""Scores of filters, against what their definitions say one by one."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import Layers, toy_graph

from deploy.errors import GraphError, InputError
from toolchain.criteria import filters_of, geometric_median, layer_scores, scored_nodes
from toolchain.graph import Graph, Node


@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_geometric_median_is_the_sum_of_distances(count: int, length: int, seed: int) -> None:
    filters = np.random.default_rng(seed).normal(3, 1, (count, length))
    filters[count // 2] = filters[0]
    each_by_each = [sum(np.linalg.norm(one - other) for other in filters) for one in filters]
    # Squared distances are differences of products of some 20 numbers: their rounding, 2^-53 each, comes out as a root.
    rounding = np.sqrt(20 * 25 * 2**-52)
    np.testing.assert_allclose(geometric_median(filters), each_by_each, rtol=1e-9, atol=count * rounding)


def test_norms_of_every_kind_of_filter() -> None:
    kernels = {
        "Conv2D": {"kernel": np.array([1, -2, 3, 0, 0, 4], np.float32).reshape(1, 1, 3, 2)},
        "Dense": {"kernel": np.array([1, -2, 3, 0, 0, 4], np.float32).reshape(3, 2)},
        "Conv2DTranspose": {"kernel": np.array([1, 3, 0, -2, 0, 4], np.float32).reshape(1, 1, 2, 3)},
        "SeparableConv2D": {
            "depthwise_kernel": np.full((1, 1, 3, 1), 7, np.float32),
            "pointwise_kernel": np.array([1, -2, 3, 0, 0, 4], np.float32).reshape(1, 1, 3, 2),
        },
    }
    nodes = [Node("in", "InputLayer", (), {"shape": [2, 2, 3]})]
    nodes += [Node(op, op, ("in",), {}, weights) for op, weights in kernels.items()]
    graph = Graph("net", tuple(nodes), ("Conv2D",))
    for op in kernels:
        assert filters_of(graph.by_name[op]).tolist() == [[1, 3, 0], [-2, 0, 4]]
        assert layer_scores(graph, [op], "l1")[op].tolist() == [1 + 3, 2 + 4]
        assert layer_scores(graph, [op], "l2")[op].tolist() == [np.sqrt(1 + 9), np.sqrt(4 + 16)]


def test_batch_norm_scales_know_no_sign() -> None:
    graph = toy_graph()
    gamma = graph.by_name["conv_1_bn"].weights["gamma"]
    assert (gamma < 0).any()
    np.testing.assert_array_equal(layer_scores(graph, ["conv_1"], "bn_scale")["conv_1"], np.abs(gamma))


def test_a_layer_without_batch_norm_has_no_scale() -> None:
    with pytest.raises(InputError, match="bn_scale needs a batch norm .*: 2 of 3 have none, 'conv_2', 'conv_3';"):
        layer_scores(toy_graph(), ["conv_1", "conv_2", "conv_3"], "bn_scale")


def test_a_batch_norm_without_scale_gives_none() -> None:
    graph = toy_graph()
    norm = graph.by_name["conv_1_bn"]
    weights = {key: array for key, array in norm.weights.items() if key != "gamma"}
    changed = dataclasses.replace(norm, weights=weights, attributes={**norm.attributes, "scale": False})
    nodes = tuple(changed if node is norm else node for node in graph.nodes)
    with pytest.raises(InputError, match="'conv_1'"):
        layer_scores(dataclasses.replace(graph, nodes=nodes), ["conv_1"], "bn_scale")


def test_taylor_scores_are_given_for_every_channel() -> None:
    graph, good = toy_graph(), np.arange(32.0)
    found = layer_scores(graph, ["conv_1"], "taylor", {"conv_1": good, "other": good})
    assert found["conv_1"].tolist() == good.tolist()
    with pytest.raises(InputError, match="taylor is measured on pictures: none are given"):
        layer_scores(graph, ["conv_1"], "taylor")
    for bad in (good[1:], -good, good * np.nan):
        with pytest.raises(InputError, match="'conv_1' has 32 channels"):
            layer_scores(graph, ["conv_1"], "taylor", {"conv_1": bad})
    with pytest.raises(InputError, match="'conv_2' has 32 channels and gets scores of shape"):
        layer_scores(graph, ["conv_2"], "taylor", {"conv_1": good})


def test_weights_that_are_no_numbers_are_refused() -> None:
    graph = toy_graph()
    kernel = graph.by_name["conv_1"].weights["kernel"].copy()
    kernel[0, 0, 0, :2] = np.nan, np.inf
    nodes = [
        dataclasses.replace(node, weights={"kernel": kernel}) if node.name == "conv_1" else node for node in graph.nodes
    ]
    with pytest.raises(GraphError, match=f"2 of {3 * 3 * 16 * 32} values of kernel of 'conv_1' are NaN"):
        layer_scores(dataclasses.replace(graph, nodes=tuple(nodes)), ["conv_0", "conv_1"], "l2")


def test_a_channel_is_judged_behind_its_batch_norm_and_activation() -> None:
    graph = toy_graph()
    assert scored_nodes(graph, ["conv_0", "conv_1", "grouped", "conv_2", "conv_3", "far"]) == {
        "conv_0": "conv_0_activation",
        "conv_1": "conv_1_activation",
        # Read by a depthwise convolution next.
        "grouped": "shaped",
        # By a sum.
        "conv_2": "conv_2",
        # By two.
        "conv_3": "conv_3",
        "far": "far",
    }


def test_no_further_than_an_output_or_what_mixes_channels() -> None:
    net = Layers()
    net.conv("first", "image", 3, 8)
    net.norm("norm", "first", 8)
    net.add("softmax", "Activation", "norm", activation="softmax")
    net.add("relu", "ReLU", "softmax")
    assert scored_nodes(Graph("net", tuple(net.nodes), ("relu",)), ["first"]) == {"first": "norm"}
    assert scored_nodes(Graph("net", tuple(net.nodes), ("relu", "first")), ["first"]) == {"first": "first"}
