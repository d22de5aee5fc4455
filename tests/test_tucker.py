"""The Tucker pass: which layers, under which names, what it computes, and the published counts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import Layers

from deploy.contract import Scale, YoloHead
from deploy.errors import GraphError, InputError
from toolchain import tucker as module
from toolchain.activations import PatchMoments
from toolchain.cost import cost
from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph, Node
from toolchain.layer_timing import Candidate
from toolchain.pass_report import PassResult
from toolchain.ranks import Ranks
from toolchain.scope import select
from toolchain.shapes import shapes
from toolchain.tucker import candidates, decompose, low_rank_kernel, why_not
from toolchain.tucker_factors import Unfoldings
from toolchain.yolov4 import YoloV4, build_yolov4


def _conv(name: str, source: str, cin: int, cout: int, size: int = 3, *, bias: bool = False, **attributes: Any) -> Node:
    random = np.random.default_rng(sum(map(ord, name)))
    groups = attributes.get("groups", 1)
    kernel = random.normal(0, 1 / (size * np.sqrt(cin / groups)), (size, size, cin // groups, cout))
    weights = {"kernel": kernel.astype(np.float32)}
    if bias:
        weights["bias"] = random.normal(size=cout).astype(np.float32)
    given = {"filters": cout, "kernel_size": [size, size], "padding": "same", "use_bias": bias, **attributes}
    return Node(name, "Conv2D", (source,), given, weights)


def _net() -> Graph:
    """Every kind of layer with a kernel; `first` and `wide` are what can be decomposed."""
    depthwise = {"kernel": np.ones((3, 3, 16, 1), np.float32)}
    nodes = (
        Node("image", "InputLayer", (), {"shape": [16, 16, 3]}),
        _conv("stem", "image", 3, 16),
        _conv("first", "stem", 16, 24, activation="relu"),
        _conv("narrow", "first", 24, 16, 1),
        Node("depth", "DepthwiseConv2D", ("narrow",), {"kernel_size": [3, 3], "padding": "same"}, depthwise),
        _conv("grouped", "depth", 16, 16, groups=4),
        _conv("twice", "grouped", 16, 16),
        Node("again", "Conv2D", ("twice",), _conv("twice", "", 16, 16).attributes, shared_with="twice"),
        _conv("wide", "again", 16, 32, strides=[2, 2], bias=True),
        Node("normal", "BatchNormalization", ("wide",), {}, _statistics(32)),
        Node("flat", "GlobalAveragePooling2D", ("normal",)),
        Node("dense", "Dense", ("flat",), {"units": 2}, {"kernel": np.ones((32, 2), np.float32)}),
    )
    head = YoloHead((Scale(8, ((1.0, 1.0),), {"raw": "wide"}),))
    return Graph("net", nodes, ("wide", "first", "dense"), head=head)


def _statistics(channels: int) -> dict[str, np.ndarray]:
    return {name: np.ones(channels, np.float32) for name in ("gamma", "beta", "moving_mean", "moving_variance")}


def _everything(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def _reasons(result: PassResult) -> dict[str, str]:
    return {layer.name: layer.reason for layer in result.layers}


def _run(graph: Graph, picture: np.ndarray) -> list[np.ndarray]:
    """The outputs of the graph in Keras, of one picture or of several."""
    from toolchain.keras_writer import to_keras

    found = to_keras(graph)(picture, training=False)
    return [np.asarray(output) for output in (found if isinstance(found, list) else [found])]


def test_what_is_decomposed_and_why_the_rest_is_not() -> None:
    graph = _net()
    result = decompose(graph, set(_everything(graph)) - {"narrow"}, Ranks(ratio=0.25))
    assert _reasons(result) == {
        "stem": "reads the picture, or as few channels: 3",
        "first": "",
        "narrow": "left out by the scope",
        "depth": "depthwise: every filter reads one channel already",
        "grouped": "grouped: 4 groups",
        "twice": "its weights are used twice",
        "again": "its weights are used twice",
        "wide": "",
        "dense": "Dense: only Conv2D are decomposed",
    }
    assert candidates(graph, _everything(graph), False) == ["first", "wide"]
    assert candidates(graph, _everything(graph), True) == ["first", "narrow", "wide"]
    assert candidates(graph, ["wide"], True) == ["wide"]
    assert why_not(graph, graph.by_name["narrow"]) == "1x1: decomposed only on request (pointwise)"
    assert why_not(graph, graph.by_name["stem"], named=True) == ""
    assert why_not(graph, graph.by_name["wide"]) == ""


def test_three_layers_stand_in_the_place_of_one() -> None:
    result = decompose(_net(), ["first", "wide"], Ranks(ratio=0.25))
    graph = result.graph
    names = [node.name for node in graph.nodes if "tucker" in node.name]
    assert names == [f"{layer}_tucker_{index}" for layer in ("first", "wide") for index in range(3)]
    first, middle, last = (graph.by_name[f"wide_tucker_{index}"] for index in range(3))
    assert (first.inputs, middle.inputs, last.inputs) == (("again",), ("wide_tucker_0",), ("wide_tucker_1",))
    assert [node.weights["kernel"].shape for node in (first, middle, last)] == [
        (1, 1, 16, 4),
        (3, 3, 4, 8),
        (1, 1, 8, 32),
    ]
    assert all(node.weights["kernel"].dtype == np.float32 for node in (first, middle, last))
    assert [node.attributes["use_bias"] for node in (first, middle, last)] == [False, False, True]
    assert (middle.attributes["strides"], middle.attributes["padding"]) == ([2, 2], "same")
    assert (first.attributes["strides"], last.attributes["strides"]) == ([1, 1], [1, 1])
    np.testing.assert_array_equal(last.weights["bias"], _net().by_name["wide"].weights["bias"])
    assert [graph.by_name[f"first_tucker_{index}"].attributes.get("activation") for index in range(3)] == [
        None,
        None,
        "relu",
    ]
    # A layer without a bias gets one, as published: the batch norm that follows takes it in.
    assert not graph.by_name["first_tucker_2"].weights["bias"].any()
    assert graph.by_name["narrow"].inputs == ("first_tucker_2",)
    assert graph.by_name["normal"].inputs == ("wide_tucker_2",)
    assert graph.outputs == ("wide_tucker_2", "first_tucker_2", "dense")
    assert isinstance(graph.head, YoloHead)
    assert graph.head.scales[0].outputs == {"raw": "wide_tucker_2"}
    assert shapes(graph)["wide_tucker_2"] == shapes(_net())["wide"] == (8, 8, 32)


def test_the_report_counts_both_sides() -> None:
    graph = _net()
    result = decompose(graph, _everything(graph), Ranks(ratio=0.25))
    (wide,) = (layer for layer in result.layers if layer.name == "wide")
    assert wide.kernel == (3, 3, 16, 32)
    assert wide.parameters == (3 * 3 * 16 * 32 + 32, 16 * 4 + 3 * 3 * 4 * 8 + 8 * 32 + 32)
    assert wide.flops == (
        2 * 8 * 8 * 32 * 9 * 16 + 8 * 8 * 32,
        2 * (16 * 16 * 4 * 16 + 8 * 8 * 8 * 9 * 4 + 8 * 8 * 32 * 8) + 8 * 8 * 32,
    )
    assert wide.ranks == (4, 8)
    assert wide.error is not None and 0 < wide.error < 1
    assert result.error == "that of the layer's kernel, Frobenius norm, relative" and not result.notes
    kernel = graph.by_name["wide"].weights["kernel"]
    assert wide.error == pytest.approx(
        np.linalg.norm(low_rank_kernel(kernel, (4, 8), None) - kernel) / np.linalg.norm(kernel), rel=1e-5
    )
    before, after = cost(graph), cost(result.graph)
    changed = [layer for layer in result.layers if not layer.reason]
    assert before.total - after.total == sum(layer.parameters[0] - layer.parameters[1] for layer in changed)
    assert before.flops - after.flops == sum(layer.flops[0] - layer.flops[1] for layer in changed)


def test_a_layer_that_would_not_shrink_stays() -> None:
    graph = _net()
    result = decompose(graph, _everything(graph), Ranks(ratio=0.95, layers={"wide": (2, 2)}))
    # int(16 * 0.95) = 15, int(24 * 0.95) = 22
    split = 16 * 15 + 9 * 15 * 22 + 22 * 24 + 24
    assert _reasons(result)["first"] == f"no gain: {split:,} parameters decomposed, {9 * 16 * 24:,} whole"
    # A stride leaves the first of the three at the full size: fewer parameters, more operations.
    entry = Node("in", "InputLayer", (), {"shape": [64, 64, 8]})
    strided = _conv("b", "a", 8, 8, 2, strides=[4, 4])
    one = Graph("g", (entry, _conv("a", "in", 8, 8, 1), strided), ("b",))
    with pytest.raises(GraphError, match="because: no gain: .* operations decomposed"):
        decompose(one, ["b"], Ranks(ratio=0.5))


def test_named_layers_are_decomposed_whatever_they_gain() -> None:
    graph = _net()
    result = decompose(graph, _everything(graph), Ranks(layers={"stem": (3, 16), "narrow": (24, 16)}))
    reasons = _reasons(result)
    assert [name for name, reason in reasons.items() if not reason] == ["stem", "narrow"]
    assert reasons["first"] == reasons["wide"] == "no ranks are given for it"
    assert candidates(graph, _everything(graph), False, ["stem"]) == ["stem", "first", "wide"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"wiide": (1, 1)}, "'wiide' is none of 'net''s; did you mean 'wide'"),
        ({"grouped": (1, 1)}, "'grouped' cannot .grouped: 4 groups."),
        ({"narrow": (1, 1)}, "'narrow' cannot .left out by the scope."),
        ({"wide": (17, 1)}, "which has 16 in and 32 out"),
    ],
)
def test_ranks_for_layers_that_cannot_have_them(layers: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decompose(_net(), ["wide", "grouped"], Ranks(layers=layers))


def test_weights_that_are_not_finite_are_named() -> None:
    graph = _net()
    broken = {**graph.by_name["wide"].weights, "bias": np.full(32, np.inf, np.float32)}
    nodes = [dataclasses.replace(node, weights=broken) if node.name == "wide" else node for node in graph.nodes]
    with pytest.raises(GraphError, match="weights are finite: 'wide'"):
        decompose(dataclasses.replace(graph, nodes=tuple(nodes)), ["wide"], Ranks(ratio=0.5))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["image"], "takes none of 'net''s 9; widen"),
        (["stem", "twice", "again", "dense"], "none of 'net''s 4 layers in scope was, 2 of them because: its weights"),
    ],
)
def test_a_pass_that_changes_nothing_says_the_commonest_reason(chosen: list[str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        decompose(_net(), chosen, Ranks(ratio=0.5))


def _timed(times: Mapping[str, tuple[float, float]], asked: list[Candidate]) -> module.Timer:
    def timer(given: Sequence[Candidate]) -> Mapping[str, tuple[float, float]]:
        asked.extend(given)
        return {candidate.name: times[candidate.name] for candidate in given}

    return timer


def test_the_guard_keeps_only_what_is_faster() -> None:
    asked: list[Candidate] = []
    graph = _net()
    timer = _timed({"first": (1.1, 1.234), "wide": (2.0, 1.0)}, asked)
    result = decompose(graph, _everything(graph), Ranks(ratio=0.25), timer=timer)
    layers = {layer.name: layer for layer in result.layers}
    assert layers["first"].reason == "not faster: 1.234 ms decomposed, 1.100 ms whole"
    assert (layers["first"].milliseconds, layers["wide"].milliseconds) == ((1.1, 1.234), (2.0, 1.0))
    assert layers["first"].parameters[0] == layers["first"].parameters[1]
    assert "first" in result.graph.by_name and "wide_tucker_1" in result.graph.by_name
    # What was timed is the layer alone, before and after, and reads what it reads.
    assert [candidate.name for candidate in asked] == ["first", "wide"]
    for candidate in asked:
        before, after = shapes(candidate.before), shapes(candidate.after)
        assert len(before) == 2 and len(after) == 4
        source = graph.by_name[candidate.name].inputs[0]
        assert next(iter(before.values())) == next(iter(after.values())) == shapes(graph)[source]
        assert before[candidate.before.outputs[0]] == after[candidate.after.outputs[0]]


def test_a_guard_that_refuses_all_leaves_the_network_as_it_was() -> None:
    graph = _net()
    timer = _timed({"first": (1.0, 1.0), "wide": (2.0, 3.0)}, [])
    result = decompose(graph, _everything(graph), Ranks(ratio=0.25), timer=timer)
    assert result.graph.nodes == graph.nodes and result.graph.outputs == graph.outputs
    assert _reasons(result)["first"].startswith("not faster: 1.000 ms decomposed")


def test_progress_counts_candidates() -> None:
    told: list[tuple[float, float]] = []
    decompose(_net(), _everything(_net()), Ranks(ratio=0.25), progress=lambda done, all_: told.append((done, all_)))
    assert told == [(1, 2), (2, 2)]


@settings(max_examples=8, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.sampled_from([1, 2, 3]),
    dilation=st.sampled_from([1, 2]),
    padding=st.sampled_from(["same", "valid"]),
    activation=st.sampled_from(["linear", "relu", "silu"]),
    bias=st.booleans(),
)
def test_full_rank_is_the_same_layer(
    size: tuple[int, int], stride: int, dilation: int, padding: str, activation: str, bias: bool
) -> None:
    attributes = {
        "kernel_size": list(size),
        "strides": [stride, stride] if dilation == 1 else [1, 1],  # Keras allows one of the two
        "dilation_rate": [dilation, dilation],
        "padding": padding,
        "activation": activation,
    }
    layer = _conv("layer", "in", 6, 5, bias=bias, **attributes)
    kernel = np.random.default_rng(0).normal(0, 1 / np.sqrt(6 * size[0] * size[1]), (*size, 6, 5)).astype(np.float32)
    layer = dataclasses.replace(layer, weights={**layer.weights, "kernel": kernel})
    graph = Graph("g", (Node("in", "InputLayer", (), {"shape": [11, 12, 6]}), layer), ("layer",))
    result = decompose(graph, ["layer"], Ranks(layers={"layer": (6, 5)}))
    picture = np.random.default_rng(1).normal(size=(2, 11, 12, 6)).astype(np.float32)
    (before,), (after,) = _run(graph, picture), _run(result.graph, picture)
    assert cost(result.graph).trainable == 6 * 6 + size[0] * size[1] * 6 * 5 + 5 * 5 + 5
    # The measured one of facts on full-rank Tucker of one layer; outputs are of size 1.
    np.testing.assert_allclose(after, before, atol=1.1e-5)


def _sampled(graph: Graph, pictures: np.ndarray) -> Callable[[str], PatchMoments]:
    """Moments of the 3x3 patches, at stride 1 and with zeros around, that the layers read."""
    sources = tuple(dict.fromkeys(node.inputs[0] for node in graph.nodes if node.op == "Conv2D"))
    seen = dict(zip(sources, _run(dataclasses.replace(graph, outputs=sources, head=None), pictures), strict=True))

    def moments(name: str) -> PatchMoments:
        padded = np.pad(seen[graph.by_name[name].inputs[0]], ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * padded.shape[3]).astype(np.float64)
        second = (patches.T @ patches / len(patches)).astype(np.float32)
        return PatchMoments(patches.mean(axis=0), second, len(patches))

    return moments


def test_with_moments_the_output_is_what_is_kept() -> None:
    nodes = (
        Node("image", "InputLayer", (), {"shape": [16, 16, 3]}),
        _conv("stem", "image", 3, 16, bias=True, activation="relu"),
        _conv("layer", "stem", 16, 24),
        Node("normal", "BatchNormalization", ("layer",), {}, _statistics(24)),
    )
    graph = Graph("g", nodes, ("layer", "normal"))
    pictures = np.random.default_rng(2).uniform(size=(8, 16, 16, 3)).astype(np.float32)
    before = _run(graph, pictures)[0]
    whole = np.linalg.norm(before - before.mean(axis=(0, 1, 2)))
    errors = {}
    for kind, moments in (("plain", None), ("weighted", _sampled(graph, pictures))):
        result = decompose(graph, ["layer"], Ranks(ratio=0.25), moments=moments)
        after = _run(result.graph, pictures)[0]
        errors[kind] = float(np.linalg.norm(after - before) / whole)
        (report,) = (layer for layer in result.layers if layer.name == "layer")
        if moments is not None:
            assert result.error.startswith("that of the layer's output on the pictures")
            # All the places were sampled, the bias makes up for the mean. Moments and weights come in float32.
            assert report.error == pytest.approx(errors[kind], rel=1e-3)
            np.testing.assert_allclose(after.mean(axis=(0, 1, 2)), before.mean(axis=(0, 1, 2)), atol=1e-5)
    # The stem's 16 channels are made of 27 numbers, of which the pictures' noise is the smaller part.
    assert errors["weighted"] < 0.7 * errors["plain"]


@pytest.mark.parametrize("ranks", [Ranks(energy=0.99), Ranks(vbmf=0.0)])
def test_ranks_follow_the_statistics(ranks: Ranks) -> None:
    moments = _sampled_of_few_causes(16)
    result = decompose(_net(), ["wide"], ranks, moments=lambda name: moments)
    (found,) = (layer.ranks for layer in result.layers if layer.ranks)
    # Two causes, and no more, make up what the layer reads: two input channels hold its output.
    assert found[0] == 2


def _sampled_of_few_causes(cin: int) -> PatchMoments:
    random = np.random.default_rng(0)
    patches = np.einsum("ntk,kc->ntc", random.normal(size=(40_000, 9, 2)), random.normal(size=(2, cin)))
    patches = patches.reshape(len(patches), -1)
    second = (patches.T @ patches / len(patches)).astype(np.float32)
    return PatchMoments(patches.mean(axis=0), second, len(patches))


@pytest.mark.parametrize(
    ("pointwise", "layers", "trainable", "megaflops"),
    [(False, 15, 20_017_571, 18_715.67), (True, 35, 16_686_001, 15_463.28)],
)
def test_the_published_counts(
    monkeypatch: pytest.MonkeyPatch, pointwise: bool, layers: int, trainable: int, megaflops: float
) -> None:
    """The reference network at ratio 0.2. Counts need shapes alone: the algebra, half a minute of it, is left out."""

    def nothing(kernel: np.ndarray, _: None) -> Unfoldings:
        none = np.zeros(0)
        return Unfoldings(kernel, none, none, none, none, None)

    monkeypatch.setattr(module, "unfold", nothing)
    monkeypatch.setattr(module, "factorize", lambda found, ranks: module._blank(found.kernel.shape, ranks))
    graph, _ = build_yolov4(YoloV4(tuple(map(str, range(20)))), seed=0)
    chosen = select(graph, ["conv2d*"], ["conv2d_37", "conv2d_29", "conv2d_21"])
    result = decompose(graph, chosen, Ranks(ratio=0.2), pointwise=pointwise)
    assert sum(layer.reason == "" for layer in result.layers) == layers
    found = cost(result.graph)
    assert found.trainable == trainable
    assert round(found.flops / 1e6, 2) == megaflops


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["yolov4-tiny", "yolo-lite-voc-trial3-noBatch"])
def test_full_rank_on_real_networks(real_data: Path, name: str) -> None:
    graph = read_darknet(real_data / "weights" / f"{name}.cfg", real_data / "weights" / f"{name}.weights", None)
    kernels = {node.name: node.weights["kernel"].shape for node in graph.nodes if node.op == "Conv2D"}
    full = {layer: (shape[2], shape[3]) for layer, shape in kernels.items()}
    result = decompose(graph, _everything(graph), Ranks(layers=full))
    assert all(not layer.reason for layer in result.layers)
    assert graph.input is not None
    picture = np.random.default_rng(0).uniform(size=(1, graph.input.height, graph.input.width, 3)).astype(np.float32)
    for before, after in zip(_run(graph, picture), _run(result.graph, picture), strict=True):
        # The published measure for 35 layers, on networks of 7 and of 21.
        assert np.linalg.norm(after - before) / np.linalg.norm(before) < 5.5e-5


def test_errors_count_as_the_batch_norm_passes_them_on() -> None:
    """Where a batch norm all but switches half of the channels off, the ranks go to the other half."""
    net = Layers(8)
    net.conv("conv", "image", 3, 16)
    net.conv("wide", "conv", 16, 16)
    net.norm("wide_bn", "wide", 16)
    gamma = np.repeat(np.float32([1, 1e-2]), 8)
    net.nodes[-1] = dataclasses.replace(net.nodes[-1], weights={**net.nodes[-1].weights, "gamma": gamma})
    net.conv("last", "wide_bn", 16, 4)
    graph = Graph("net", tuple(net.nodes), ("last",))
    patches = np.random.default_rng(1).normal(0, 1, (4000, 9 * 16))
    moments = PatchMoments(patches.mean(0), (patches.T @ patches / 4000).astype(np.float32), 4000)
    ranks = Ranks(layers={"wide": (8, 8)})
    found = decompose(graph, ["wide"], ranks, moments=lambda _: moments).graph
    first, core, last = (found.by_name[f"wide_tucker_{index}"].weights["kernel"] for index in range(3))
    kernel = (first[0, 0] @ core @ last[0, 0]).reshape(-1, 16)
    whole = graph.by_name["wide"].weights["kernel"].reshape(-1, 16)
    errors = np.linalg.norm(patches @ (kernel - whole), axis=0) / np.linalg.norm(patches @ whole, axis=0)
    assert errors[:8].max() < errors[8:].min()
