"""Batch norms after a compression: only what changed is corrected, and a change that can be undone is undone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.contract import Input
from run_here import run_here, values
from toolchain.activations import reestimate_batch_norms
from toolchain.batch_norm_correction import corrected_batch_norms
from toolchain.graph import Graph
from toy_network import SIDE, Layers, toy_graph, write_pictures


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    run_here(monkeypatch)
    return write_pictures(tmp_path, 4)


def normed(scale: float = 1.0, shift: float = 0.0) -> Graph:
    """Two convolutions with a batch norm each; the first one's filters are scaled and have a bias that shifts."""
    net = Layers(5)
    net.conv("conv_0", "image", 3, 8, strides=[4, 4])
    kernel = net.nodes[-1].weights["kernel"] * np.float32(scale)
    attributes = {**net.nodes[-1].attributes, "use_bias": True}
    bias = np.full(8, shift, np.float32)
    net.nodes[-1] = dataclasses.replace(
        net.nodes[-1], attributes=attributes, weights={"kernel": kernel, "bias": bias}
    )
    net.norm("bn_0", "conv_0", 8)
    net.add("relu_0", "ReLU", "bn_0")
    net.conv("conv_1", "relu_0", 8, 8)
    net.norm("bn_1", "conv_1", 8)
    return Graph("normed", tuple(net.nodes), ("bn_1",), Input("image", SIDE, SIDE))


def test_an_unchanged_network_stays_to_the_last_bit(pictures: list[Path]) -> None:
    graph = toy_graph()
    found = corrected_batch_norms(graph, graph, pictures)
    for before, after in zip(graph.nodes, found.nodes, strict=True):
        for name, array in before.weights.items():
            np.testing.assert_array_equal(after.weights[name], array)


def test_a_scaled_and_shifted_layer_is_made_up_for(pictures: list[Path], tmp_path: Path) -> None:
    graph = reestimate_batch_norms(normed(), pictures)  # trained on these very pictures
    other = normed(3.0, 0.7).by_name["conv_0"]
    changed = dataclasses.replace(
        graph, nodes=tuple(other if node.name == "conv_0" else node for node in graph.nodes)
    )
    found = corrected_batch_norms(graph, changed, pictures)
    outputs = [values(one, ["bn_1"], pictures, tmp_path)["bn_1"] for one in (graph, changed, found)]
    assert np.linalg.norm(outputs[1] - outputs[0]) > 0.5 * np.linalg.norm(outputs[0])
    # 3x + c with mean 3m + c and variance 9v is x with m and v, but for ε = 1e-5 beside the variances: that changes a
    # channel's size by at most 1 / sqrt(1 + ε / v) each of the two times; doubled for what sums of float32 add.
    least = min(float(graph.by_name[name].weights["moving_variance"].min()) for name in ("bn_0", "bn_1"))
    assert np.linalg.norm(outputs[2] - outputs[0]) < 2 * (1e-5 / least) * np.linalg.norm(outputs[0])


def test_a_change_of_the_statistics_alone_is_exact(pictures: list[Path]) -> None:
    """Shifted by a constant: the mean moves by it, the variance stays."""
    found = corrected_batch_norms(normed(), normed(1.0, 0.7), pictures)
    before, after = normed().by_name["bn_0"].weights, found.by_name["bn_0"].weights
    # Means of some hundred values near 1 in float32: a few epsilons of 2^-23 each.
    np.testing.assert_allclose(after["moving_mean"], before["moving_mean"] + 0.7, atol=1e-5)
    np.testing.assert_allclose(after["moving_variance"], before["moving_variance"], rtol=1e-4)


def test_channels_that_stayed_are_named(pictures: list[Path]) -> None:
    graph = normed()
    stay = np.array([0, 2, 3, 6])
    nodes = []
    for node in graph.nodes:
        weights = dict(node.weights)
        attributes = dict(node.attributes)
        if node.name == "conv_1":
            weights = {key: array[..., stay] for key, array in weights.items()}
            attributes["filters"] = 4
        if node.name == "bn_1":
            weights = {key: array[stay] for key, array in weights.items()}
        nodes.append(dataclasses.replace(node, attributes=attributes, weights=weights))
    pruned = dataclasses.replace(graph, nodes=tuple(nodes))
    found = corrected_batch_norms(graph, pruned, pictures, kept={"bn_1": stay})
    # Nothing that the remaining channels see has changed.
    for key, array in graph.by_name["bn_1"].weights.items():
        np.testing.assert_allclose(found.by_name["bn_1"].weights[key], array[stay], rtol=1e-5, atol=1e-6)


def test_a_network_without_batch_norms_is_left_alone(pictures: list[Path]) -> None:
    net = Layers(1)
    net.conv("conv", "image", 3, 4)
    graph = Graph("plain", tuple(net.nodes), ("conv",), Input("image", SIDE, SIDE))
    assert corrected_batch_norms(graph, graph, pictures) is graph
