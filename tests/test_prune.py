"""The whole pass: the published sizes, reports, corrections, what the timer refuses, and bad settings."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from toy_network import Layers, toy_graph

from deploy.errors import GraphError, InputError
from toolchain.cost import cost, node_costs
from toolchain.graph import Graph, Node
from toolchain.layer_timing import Candidate
from toolchain.prune import Pruning, prune
from toolchain.scope import select
from toolchain.shapes import shapes
from toolchain.yolov4 import YoloV4, build_yolov4

_EXCLUDED = ("block1a_se_reduce ~ block7b_add", "top_conv", "conv2d_36", "conv2d_28", "conv2d_20")


@functools.cache
def _reference() -> Graph:
    return build_yolov4(YoloV4(labels=tuple(f"class {i}" for i in range(20))), seed=1)[0]


def _pruned_reference(graph: Graph, **settings: Any) -> Graph:
    return prune(graph, select(graph, [], _EXCLUDED), Pruning(0.8, **settings)).graph


def test_the_published_uniform_size() -> None:
    found = cost(_pruned_reference(_reference(), cut="uniform", multiple=1))
    assert found.trainable == 10_747_371
    assert round(found.flops / 1e6, 2) == 10320.95


def test_slamp_of_equal_norms_keeps_as_many_channels_everywhere() -> None:
    graph = _reference()
    nodes = []
    for node in graph.nodes:
        weights = dict(node.weights)
        if node.op == "Conv2D":
            # All filters of a layer have the norm 1.
            length = weights["kernel"].size // weights["kernel"].shape[-1]
            weights["kernel"] = np.full_like(weights["kernel"], length**-0.5)
        nodes.append(dataclasses.replace(node, weights=weights))
    equal = dataclasses.replace(graph, nodes=tuple(nodes))
    result = prune(equal, select(equal, [], _EXCLUDED), Pruning(0.8, multiple=1))
    # 32 layers with 17,032 filters, of which 20 % are 3,406.4: 32 * 107 = 3,424 with those that are as good.
    changed = [layer for layer in result.layers if layer.op == "Conv2D" and not layer.reason]
    assert len(changed) == 38 - 3 - 3
    assert {layer.channels for layer in changed} == {(count, 107) for count in (120, 240, 336, 640, 672, 1280)}
    found = cost(result.graph)
    assert round(found.trainable / 1e6, 3) == 10.546
    assert round(found.flops / 1e6) == 14253
    assert "13,608 of 17,032 filters that may go are removed, 79.9%; 80.0% was asked for" in result.notes[0]


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_published_slamp_size_from_random_weights(multiple: int) -> None:
    graph = _pruned_reference(_reference(), multiple=multiple)
    found = cost(graph)
    assert abs(found.trainable / 10.71e6 - 1) < 0.02
    assert abs(found.flops / 14442.96e6 - 1) < 0.04
    extents, before = shapes(graph), shapes(_reference())
    assert all(extents[name] == before[name] for name in graph.outputs)
    assert multiple == 1 or all(
        extents[name][-1] % 8 == 0 for name in before if name.startswith("conv2d") and name not in graph.outputs
    )


def _everything(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def _toy(ratio: float = 0.5, **more: Any) -> Any:
    graph = toy_graph()
    keywords = {key: more.pop(key) for key in ("taylor", "means", "timer") if key in more}
    return prune(graph, _everything(graph), Pruning(ratio, **more), **keywords)


def test_a_ratio_of_zero_returns_the_graph_itself() -> None:
    graph = toy_graph()
    result = prune(graph, _everything(graph), Pruning(0))
    assert result.graph is graph
    assert result.notes == ("a ratio of 0 removes nothing",)
    reasons = {layer.name: layer.reason for layer in result.layers}
    assert reasons["conv_1"] == "the ratio is 0"
    assert reasons["far"] == "an output of the network"


def test_every_layer_with_a_kernel_is_reported() -> None:
    graph = toy_graph()
    result = _toy(cut="uniform", multiple=8)
    assert [layer.name for layer in result.layers] == [
        *("conv_0", "conv_1", "grouped", "depthwise", "conv_2", "conv_3", "far", "near")
    ]
    layers = {layer.name: layer for layer in result.layers}
    before, after = node_costs(graph), node_costs(result.graph)
    for name, layer in layers.items():
        assert layer.parameters == (before[name].total, after[name].total)
        assert layer.flops == (before[name].flops, after[name].flops)
        assert layer.channels == (shapes(graph)[name][-1], shapes(result.graph)[name][-1])
    assert layers["conv_0"].kernel == (3, 3, 3, 16)
    # Of the grouped convolution's four groups each loses the same four places of eight.
    assert layers["conv_1"].channels == layers["grouped"].channels == (32, 16)
    # Tied by the residual sum.
    assert layers["depthwise"].channels == layers["conv_2"].channels == (32, 16)
    norms = np.linalg.norm(graph.by_name["conv_0"].weights["kernel"].reshape(-1, 16), axis=0)
    # Rounding in float32, in which these norms are.
    assert layers["conv_0"].error == pytest.approx(np.sort(norms)[:8].sum() / norms.sum(), rel=1e-6)
    assert layers["depthwise"].error is layers["far"].error is None
    assert result.error == "the removed filters' share of the sum of the layer's scores by l2"
    assert layers["far"].reason == "an output of the network"
    assert layers["far"].channels == (14, 14)
    assert layers["far"].parameters[1] < layers["far"].parameters[0]
    # conv_0, conv_1, the two that the sum ties, conv_3.
    assert 16 + 32 + 2 * 32 + 48 == 160
    assert result.notes == ("80 of 160 filters that may go are removed, 50.0%",)


@pytest.mark.parametrize("policy", ["average", "sum", "maximum", "union", "intersection"])
@pytest.mark.parametrize("cut", ["slamp", "uniform", "global"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median", "taylor"])
def test_every_way_leaves_a_network(criterion: Any, cut: Any, policy: Any) -> None:
    graph = toy_graph()
    random = np.random.default_rng(7)
    taylor = {name: random.uniform(0, 1, shape[-1]) for name, shape in shapes(graph).items()}
    result = _toy(0.6, criterion=criterion, cut=cut, policy=policy, multiple=4, taylor=taylor)
    found = shapes(result.graph)
    assert [found[name] for name in graph.outputs] == [shapes(graph)[name] for name in graph.outputs]
    for layer in result.layers:
        assert 1 <= layer.channels[1] <= layer.channels[0]
        assert bool(layer.reason) == (layer.channels[0] == layer.channels[1])
        assert layer.reason or layer.channels[1] % 4 == 0


def test_batch_norm_scales_choose_the_channels() -> None:
    graph = toy_graph()
    result = prune(graph, ["conv_0"], Pruning(0.5, criterion="bn_scale", cut="global", multiple=1))
    gamma = graph.by_name["conv_0_bn"].weights["gamma"]
    kept = np.abs(gamma) >= np.sort(np.abs(gamma))[8]
    np.testing.assert_array_equal(result.graph.by_name["conv_0_bn"].weights["gamma"], gamma[kept])
    kernel = graph.by_name["conv_0"].weights["kernel"]
    np.testing.assert_array_equal(result.graph.by_name["conv_0"].weights["kernel"], kernel[..., kept])
    np.testing.assert_array_equal(
        result.graph.by_name["conv_1"].weights["kernel"], graph.by_name["conv_1"].weights["kernel"][:, :, kept]
    )


def test_what_is_rounded_back_is_told() -> None:
    result = _toy(0.1, cut="uniform", multiple=32)
    layers = {layer.name: layer for layer in result.layers}
    assert layers["conv_0"].reason == "16 channels are fewer than the multiple of 32 on which they must end"
    assert layers["conv_1"].reason.startswith("28 of 32 channels would be left, which to a multiple of 32 are all")
    assert layers["depthwise"].reason == layers["conv_2"].reason
    # The other 16 channels of conv_3: of its 48 the nearest multiple is 32.
    assert layers["conv_3"].channels == (48, 32)


def test_a_network_that_lost_nothing_is_told() -> None:
    graph = toy_graph()
    result = prune(graph, ["conv_0"], Pruning(0.1, multiple=32))
    assert result.graph is graph
    assert result.notes[0].startswith("0 of 16 filters that may go are removed, 0.0%; 10.0% was asked for")


def test_means_are_asked_once_and_correct_the_readers() -> None:
    graph, asked = toy_graph(), []

    def means(nodes: Sequence[str]) -> Mapping[str, np.ndarray]:
        asked.append(list(nodes))
        return {name: np.ones(shapes(graph)[name][-1]) for name in nodes}

    plain, corrected = _toy(multiple=1), _toy(multiple=1, means=means)
    assert asked == [["conv_0_activation", "conv_1_activation", "linear", "pool", "conv_3", "joined"]]
    changed = {
        node.name
        for node, other in zip(plain.graph.nodes, corrected.graph.nodes, strict=True)
        if {key: array.tobytes() for key, array in node.weights.items()}
        != {key: array.tobytes() for key, array in other.weights.items()}
    }
    assert changed == {"conv_1_bn", "grouped", "conv_2", "conv_3", "far", "near"}
    assert shapes(plain.graph) == shapes(corrected.graph)


def test_a_group_stays_pruned_only_if_its_layers_get_faster_together() -> None:
    seen: list[Candidate] = []
    # The sum ties grouped, through depthwise, to conv_2.
    times = {"conv_0": (2.0, 2.0), "conv_1": (2.0, 1.0), "grouped": (1.0, 1.25), "conv_2": (4.0, 3.5), "conv_3": (1, 2)}

    def timer(candidates: Sequence[Candidate]) -> Mapping[str, tuple[float, float]]:
        seen.extend(candidates)
        return {candidate.name: times[candidate.name] for candidate in candidates}

    graph = toy_graph()
    result = _toy(cut="uniform", timer=timer)
    layers = {layer.name: layer for layer in result.layers}
    assert [candidate.name for candidate in seen] == ["conv_0", "conv_1", "grouped", "conv_2", "conv_3"]
    assert {name: layers[name].milliseconds for name in times} == times
    assert layers["conv_0"].reason == "not faster: 2.000 ms pruned, 2.000 ms whole"
    assert layers["conv_3"].reason == "not faster: 2.000 ms pruned, 1.000 ms whole"
    assert layers["conv_1"].channels == (32, 16)
    # Together 4.75 where it was 5.
    assert layers["grouped"].channels == layers["conv_2"].channels == layers["depthwise"].channels == (32, 16)
    assert shapes(result.graph)["conv_0"] == shapes(graph)["conv_0"]
    whole, cut = seen[2].before, seen[2].after
    assert [shapes(whole)[node.name] for node in whole.nodes] == [(16, 16, 32), (16, 16, 32)]
    assert [shapes(cut)[node.name] for node in cut.nodes] == [(16, 16, 16), (16, 16, 16)]
    assert cut.by_name["grouped"].attributes["groups"] == 4


def test_nothing_is_timed_where_nothing_goes() -> None:
    def never(candidates: Sequence[Candidate]) -> Mapping[str, tuple[float, float]]:
        raise AssertionError(candidates)

    graph = toy_graph()
    result = prune(graph, _everything(graph), Pruning(0.01, cut="uniform"), timer=never)
    assert result.graph is graph
    assert {layer.reason for layer in result.layers} == {"no channel is below the cut", "an output of the network"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, "ratio is at least 0 and below 1: 1.0 came"),
        ({"ratio": -0.1}, "ratio is at least 0 and below 1: -0.1 came"),
        ({"ratio": float("nan")}, "ratio is at least 0 and below 1: nan came"),
        ({"ratio": "half"}, "ratio is at least 0 and below 1: 'half' came"),
        ({"ratio": 0.5, "criterion": "l3"}, "criterion is one of l1, l2, bn_scale, .*, taylor: 'l3' came"),
        ({"ratio": 0.5, "cut": "local"}, "cut is one of slamp, uniform, global: 'local' came"),
        ({"ratio": 0.5, "policy": "minimum"}, "policy is one of average, sum, .*: 'minimum' came"),
        ({"ratio": 0.5, "multiple": 0}, "a multiple of at least 1: 0 came"),
        ({"ratio": 0.5, "multiple": 8.0}, "a multiple of at least 1: 8.0 came"),
    ],
)
def test_settings_outside_their_range(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pruning(**settings)


def test_taylor_without_pictures_is_refused() -> None:
    with pytest.raises(InputError, match="taylor is measured on pictures"):
        _toy(criterion="taylor")


def test_weights_that_are_no_numbers_are_refused() -> None:
    graph = toy_graph()
    broken = dataclasses.replace(
        graph.by_name["conv_2"], weights={"kernel": np.full((3, 3, 32, 32), np.nan, np.float32)}
    )
    nodes = tuple(broken if node.name == "conv_2" else node for node in graph.nodes)
    with pytest.raises(GraphError, match="of 'conv_2' are NaN"):
        prune(dataclasses.replace(graph, nodes=nodes), _everything(graph), Pruning(0.5))


def test_a_network_of_which_nothing_may_go_is_an_error_with_the_commonest_reason() -> None:
    graph = toy_graph()
    with pytest.raises(GraphError, match="of 'toy' all 7 layers .* 5 of them because: left out by the scope; widen"):
        prune(graph, ["far"], Pruning(0.5))
    net = Graph("net", (Node("in", "InputLayer", (), {"shape": [4, 4, 3]}), Node("relu", "ReLU", ("in",))), ("relu",))
    with pytest.raises(GraphError, match="needs a layer with filters: 'net' has none"):
        prune(net, ["relu"], Pruning(0.5))
    single = Layers()
    single.conv("only", "image", 3, 8)
    with pytest.raises(GraphError, match="all 1 layers .* 1 of them because: an output of the network"):
        prune(Graph("net", tuple(single.nodes), ("only",)), ["only"], Pruning(0.5))
