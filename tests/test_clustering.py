import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import InputError
from file_kernels import file_kernels
from small_training import TRAINING, data, small_graph, train_here
from toolchain.clustering import Clustering, _why_not, _wrapped, cluster
from toolchain.convert import convert
from toolchain.graph import Graph
from toolchain.kernel_report import packed_bytes
from toolchain.keras_writer import to_keras, with_weights_of
from toolchain.tf_keras_writer import to_tf_keras
from toy_network import SIDE, toy_graph

NAMES = ("conv_0", "conv_1", "grouped", "depthwise", "conv_2", "conv_3")


def kernel(graph: Graph, name: str) -> np.ndarray:
    weights = graph.by_name[name].weights
    return weights["depthwise_kernel"] if "depthwise_kernel" in weights else weights["kernel"]


def test_kernels_have_few_values_and_so_has_each_channel_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = toy_graph()
    with monkeypatch.context() as patch:
        train_here(patch)
        result = cluster(graph, Clustering(8, exclude=("near",)), TRAINING, data())
        convert(result.graph, "float32", tmp_path / "clustered.tflite")
    assert {layer.name: layer.reason for layer in result.layers if layer.reason} == {
        "near": "left out by the scope",
        "far": "it predicts; include it by name",
        "depthwise": "DepthwiseConv2D: tensorflow-model-optimization leaves its few weights alone",
    }
    for layer in result.layers:
        before, after = kernel(graph, layer.name), kernel(result.graph, layer.name)
        assert layer.values == (len(np.unique(before)), len(np.unique(after)))
        if not layer.reason:
            assert 2 <= len(np.unique(after)) <= 8 < len(np.unique(before))
            # The centroids are where the weights were.
            assert np.abs(after - before).mean() < 0.3 * before.std(), layer.name
    first, last = result.facts["packed_bytes"]
    assert (first, last) == (packed_bytes(graph), packed_bytes(result.graph)) and last < 0.4 * first
    assert "each output channel has 8 values of its own" in result.notes[0]
    found = dict(zip(NAMES, file_kernels(tmp_path / "clustered.tflite"), strict=False))
    for name in ("conv_0", "conv_1", "grouped", "conv_2", "conv_3"):
        assert max(len(np.unique(channel)) for channel in found[name]) <= 8, name
    # A batch norm stands behind the first alone.
    assert len(np.unique(found["conv_1"])) > 8 * 8 and len(np.unique(found["conv_2"])) <= 8


@pytest.mark.parametrize("init", ["kmeans++", "linear", "density", "random"])
def test_what_is_handed_back_computes_what_was_trained(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    graph = toy_graph()
    model = to_tf_keras(graph)
    layers = ["conv_0", "conv_1", "conv_2", "near"]
    settings = {"layers": layers, "clusters": 6, "init": init, "keep_zeros": False}
    wrapped = _wrapped(model, 10, settings)
    pictures = np.random.default_rng(0).uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    expected = [np.asarray(output) for output in wrapped.model(pictures, training=False)]
    clustered = with_weights_of(graph, wrapped.strip())
    for found, wanted in zip(to_keras(clustered)(pictures, training=False), expected, strict=True):
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert all(len(np.unique(kernel(clustered, name))) <= 6 for name in layers)
    np.testing.assert_array_equal(kernel(clustered, "conv_3"), kernel(graph, "conv_3"))


def test_zeros_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    nodes = []
    for node in small_graph().nodes:
        if node.op == "Conv2D":
            array = node.weights["kernel"]
            sparse = np.where(np.abs(array) > np.median(np.abs(array)), array, 0).astype(np.float32)
            node = dataclasses.replace(node, weights={**node.weights, "kernel": sparse})
        nodes.append(node)
    graph = dataclasses.replace(small_graph(), nodes=tuple(nodes))
    training = dataclasses.replace(TRAINING, learning_rate=1e-3)
    result = cluster(graph, Clustering(16, keep_zeros=True), training, data())
    for layer in result.layers:
        if not layer.reason:
            before, after = kernel(graph, layer.name), kernel(result.graph, layer.name)
            assert (after[before == 0] == 0).all(), layer.name
            assert len(np.unique(after)) <= 16 and (after != 0).mean() > 0.3, layer.name


def test_a_layer_with_no_more_weights_than_clusters_is_left_alone() -> None:
    node = toy_graph().by_name["conv_0"]
    size = 3 * 3 * 3 * 16
    assert _why_not(node, size) == f"it has no more weights than clusters: {size}"
    assert _why_not(node, size - 1) == ""


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clusters": 1}, "clusters are 2 to 256: got 1"),
        ({"clusters": 257}, "clusters are 2 to 256: got 257"),
        ({"clusters": 2, "keep_zeros": True}, "clusters are 3 to 256, zero among them: got 2"),
        ({"clusters": True}, "clusters are 2 to 256: got True"),
        ({"clusters": 8.0}, "clusters are 2 to 256: got 8.0"),
        ({"init": "kmeans"}, "kmeans\\+\\+, linear, density, random: got 'kmeans'"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Clustering(**settings)
