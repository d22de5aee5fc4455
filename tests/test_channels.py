"""Groups of channels on every kind of connection, and networks without some of them: shapes, and what they compute."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import Layers

from deploy.errors import GraphError
from toolchain.channel_rules import KERNEL_OPS, is_per_channel
from toolchain.channels import Channels, analyse, remove
from toolchain.cost import cost
from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph, Node
from toolchain.scope import select
from toolchain.shapes import shapes
from toolchain.yolov4 import YoloV4, build_yolov4

#: Of the tiny pictures here.
_SIDE = 8


def _image(layers: Layers, channels: int = 3) -> str:
    layers.nodes[0] = Node("image", "InputLayer", (), {"shape": [_SIDE, _SIDE, channels]})
    return "image"


def _net() -> Layers:
    """A net with a first convolution of 12 channels, "first"."""
    net = Layers()
    net.conv("first", _image(net), 3, 12)
    return net


def _graph(net: Layers, *outputs: str) -> Graph:
    return Graph("net", tuple(net.nodes), outputs or (net.nodes[-1].name,))


def _everything(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def _analysed(graph: Graph) -> Channels:
    return analyse(graph, _everything(graph))


def _layers_of(channels: Channels) -> list[tuple[str, ...]]:
    return [group.layers for group in channels.free]


def _depthwise(net: Layers, name: str, source: str, channels: int, multiplier: int = 1) -> str:
    kernel = net.random.normal(0, 0.3, (3, 3, channels, multiplier)).astype(np.float32)
    bias = net.random.normal(0, 0.3, channels * multiplier).astype(np.float32)
    weights = {"kernel": kernel, "bias": bias}
    settings = {"padding": "same", "kernel_size": [3, 3], "depth_multiplier": multiplier}
    return net.add(name, "DepthwiseConv2D", source, weights=weights, **settings)


def _dense(net: Layers, name: str, source: str, count: int, units: int) -> str:
    kernel = net.random.normal(0, np.sqrt(1 / count), (count, units)).astype(np.float32)
    weights = {"kernel": kernel, "bias": net.random.normal(0, 1, units).astype(np.float32)}
    return net.add(name, "Dense", source, weights=weights, units=units, activation="relu" if units > 5 else "linear")


def _concatenated() -> Layers:
    net = _net()
    net.norm("norm", "first", 12)
    net.add("leaky", "LeakyReLU", "norm", negative_slope=0.1)
    net.conv("second", "leaky", 12, 8)
    net.add("joined", "Concatenate", "second", "leaky", "second", axis=-1)
    net.conv("last", "joined", 28, 5)
    return net


def _residual() -> Layers:
    net = _net()
    net.conv("side", "first", 12, 16)
    net.conv("back", "side", 16, 12)
    net.add("sum", "Add", "first", "back")
    net.conv("last", "sum", 12, 5)
    return net


def _squeeze_excite() -> Layers:
    """Each channel times a gate that comes of all of them, with an inner reshape."""
    net = _net()
    net.add("pooled", "GlobalAveragePooling2D", "first")
    net.add("seen", "Reshape", "pooled", target_shape=[1, 1, 12])
    net.conv("reduce", "seen", 12, 6, size=1, activation="silu", use_bias=False)
    net.conv("expand", "reduce", 6, 12, size=1, activation="sigmoid")
    net.add("excited", "Multiply", "first", "expand")
    net.conv("last", "excited", 12, 5)
    return net


def _spatial_pyramid() -> Layers:
    net = _net()
    for size in (5, 3):
        net.add(f"pool_{size}", "MaxPooling2D", "first", pool_size=[size, size], strides=[1, 1], padding="same")
    net.add("joined", "Concatenate", "pool_5", "pool_3", "first", axis=3)
    net.conv("last", "joined", 36, 5, size=1)
    return net


def _path_aggregation() -> Layers:
    """Down, up again, and both ways joined."""
    net = _net()
    net.add("pad", "ZeroPadding2D", "first", padding=[[1, 0], [1, 0]])
    net.conv("down", "pad", 12, 16, strides=[2, 2], padding="valid")
    net.conv("lateral", "down", 16, 8, size=1)
    net.add("up", "UpSampling2D", "lateral", size=[2, 2], interpolation="nearest")
    net.add("joined", "Concatenate", "first", "up", axis=-1)
    net.conv("fine", "joined", 20, 9)
    net.conv("down_again", "fine", 9, 8, strides=[2, 2])
    net.add("deep", "Concatenate", "down_again", "down", axis=-1)
    net.add("resized", "Resize", "deep", height=8, width=8, interpolation="nearest")
    net.conv("last", "resized", 24, 5)
    return net


def _grouped_route() -> Layers:
    """The second half of the channels goes a way of its own."""
    net = _net()
    net.add("half", "Slice", "first", axis=-1, start=6, stop=12)
    net.conv("second", "half", 6, 8)
    net.add("rows", "Slice", "second", axis=-3, start=0, stop=8)
    net.add("joined", "Concatenate", "first", "rows", axis=-1)
    net.conv("last", "joined", 20, 5)
    return net


def _grouped() -> Layers:
    net = _net()
    net.conv("grouped", "first", 12, 8, groups=4)
    net.conv("one_each", "grouped", 8, 16, groups=8)
    net.conv("last", "one_each", 16, 5)
    return net


def _depthwise_multiplied() -> Layers:
    net = _net()
    _depthwise(net, "depthwise", "first", 12, multiplier=2)
    net.norm("norm", "depthwise", 24)
    net.conv("last", "norm", 24, 5)
    return net


def _separable() -> Layers:
    net = _net()
    weights = {
        "depthwise_kernel": net.random.normal(0, 0.3, (3, 3, 12, 2)).astype(np.float32),
        "pointwise_kernel": net.random.normal(0, 0.3, (1, 1, 24, 10)).astype(np.float32),
        "bias": net.random.normal(0, 0.3, 10).astype(np.float32),
    }
    settings = {"filters": 10, "kernel_size": [3, 3], "depth_multiplier": 2, "padding": "same"}
    net.add("separable", "SeparableConv2D", "first", weights=weights, **settings)
    kernel = net.random.normal(0, 0.2, (3, 3, 7, 10)).astype(np.float32)
    settings = {"filters": 7, "kernel_size": [3, 3], "strides": [2, 2], "padding": "same", "use_bias": False}
    net.add("transposed", "Conv2DTranspose", "separable", weights={"kernel": kernel}, **settings)
    net.conv("last", "transposed", 7, 5)
    return net


def _flattened() -> Layers:
    net = _net()
    net.add("pool", "AveragePooling2D", "first", pool_size=[4, 4])
    net.add("flat", "Flatten", "pool")
    _dense(net, "hidden", "flat", 2 * 2 * 12, 9)
    net.add("again", "Reshape", "hidden", target_shape=[1, -1, 9])
    net.add("line", "Reshape", "again", target_shape=[-1])
    _dense(net, "last", "line", 9, 5)
    return net


def _parametric() -> Layers:
    """PReLU of each channel, of each element, and one for all."""
    net = _net()
    source, channels = "first", 12
    for name, axes, shape in (("each", [1, 2], (1, 1)), ("all", [1, 2, 3], (1, 1)), ("element", None, (8, 8))):
        alpha = net.random.uniform(-0.5, 0.5, (*shape, 1 if name == "all" else channels)).astype(np.float32)
        net.add(f"prelu_{name}", "PReLU", source, weights={"alpha": alpha}, shared_axes=axes)
        source, channels = net.conv(f"after_{name}", f"prelu_{name}", channels, channels + 1), channels + 1
    net.conv("last", source, channels, 5)
    return net


def _one_for_all() -> Layers:
    """A map of one channel that scales all the others, which it does not tie."""
    net = _net()
    net.conv("mask", "first", 12, 1, activation="sigmoid")
    net.add("masked", "Multiply", "first", "mask")
    net.conv("last", "masked", 12, 5)
    return net


#: Every net, and the layers that make each group of which something can go.
_NETS: Mapping[str, tuple[Callable[[], Layers], list[tuple[str, ...]]]] = {
    "concat": (_concatenated, [("first",), ("second",)]),
    "residual": (_residual, [("first", "back"), ("side",)]),
    "squeeze-excite": (_squeeze_excite, [("first", "expand"), ("reduce",)]),
    "spp": (_spatial_pyramid, [("first",)]),
    "pan": (_path_aggregation, [("first",), ("down",), ("lateral",), ("fine",), ("down_again",)]),
    "grouped route": (_grouped_route, [("first",), ("first",), ("second",)]),
    "grouped convolution": (_grouped, [("first",), ("grouped",)]),
    "depthwise multiplier": (_depthwise_multiplied, [("first",)]),
    "separable and transposed": (_separable, [("first",), ("separable",), ("transposed",)]),
    "flatten-dense": (_flattened, [("first",), ("hidden",)]),
    "PReLU": (_parametric, [("first",), ("after_each",), ("after_all",), ("after_element",)]),
    "broadcast": (_one_for_all, [("first",)]),
}


def _half(channels: Channels) -> np.ndarray:
    """Some half of every free group, never all."""
    random = np.random.default_rng(3)
    return np.concatenate([random.permutation(group.symbols)[: len(group.symbols) // 2] for group in channels.free])


def _zeroed(graph: Graph, channels: Channels, removed: np.ndarray) -> Graph:
    """The graph in which nobody reads the removed channels: the slices of the kernels that do are zero."""
    nodes = []
    for node in graph.nodes:
        if node.op in KERNEL_OPS:
            read = channels.symbols[node.inputs[0]]
            gone, weights = np.isin(read, removed), dict(node.weights)
            if gone.any() and not is_per_channel(node, len(read)):
                name = "depthwise_kernel" if node.op == "SeparableConv2D" else "kernel"
                kernel = weights[name].copy()
                axis = {"Dense": 0, "Conv2DTranspose": 3}.get(node.op, 2)
                np.moveaxis(kernel, axis, 0)[gone[: kernel.shape[axis]]] = 0
                node = dataclasses.replace(node, weights={**weights, name: kernel})
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _outputs(graph: Graph, count: int = 2) -> list[np.ndarray]:
    from toolchain.keras_writer import to_keras

    shape = next(node for node in graph.nodes if node.op == "InputLayer").attributes["shape"]
    pictures = np.random.default_rng(5).normal(0, 1, (count, *shape)).astype(np.float32)
    found = to_keras(graph)(pictures)
    return [np.asarray(output) for output in (found if isinstance(found, list) else [found])]


def _assert_same(first: Graph, second: Graph, most: float, relative: float) -> None:
    """most is for outputs of the order of 1 and grows with them, as rounding does."""
    for one, other in zip(_outputs(first), _outputs(second), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= most * max(1, np.abs(one).max())
        assert np.linalg.norm(one - other) <= relative * np.linalg.norm(one)


# Leaving out terms that are zero changes no sum but the order in which it is added up. With n terms of one size that is
# some sqrt(n) * 2^-24 of the result for each layer: of up to 12 * 9 terms 6e-7, and six layers deep 4e-6. The bounds
# are those of the reference network, with longer sums.
_ABSOLUTE, _RELATIVE = 3.9e-5, 9e-6


@pytest.mark.parametrize("name", _NETS)
def test_groups_and_what_is_left_of_the_network(name: str) -> None:
    make, expected = _NETS[name]
    graph = _graph(make())
    channels = _analysed(graph)
    assert _layers_of(channels) == expected
    removed = _half(channels)
    pruned = remove(graph, channels, removed)
    assert cost(pruned).total < cost(graph).total
    assert [(node.name, node.op, node.inputs) for node in pruned.nodes] == [
        (node.name, node.op, node.inputs) for node in graph.nodes
    ]
    for node in pruned.nodes:
        gone = np.isin(channels.symbols[node.name], removed)
        assert shapes(pruned)[node.name][-1] == len(gone) - gone.sum()
    _assert_same(pruned, _zeroed(graph, channels, removed), _ABSOLUTE, _RELATIVE)


def test_zero_filters_without_a_constant_change_nothing() -> None:
    graph = _graph(_concatenated())
    channels = _analysed(graph)
    gone = channels.symbols["first"][[1, 4, 7]]
    mask = np.isin(channels.symbols["first"], gone)
    kernel = np.where(mask, np.float32(0), graph.by_name["first"].weights["kernel"])
    norm = graph.by_name["norm"]
    weights = {
        key: np.where(mask & (key in ("beta", "moving_mean")), np.float32(0), array)
        for key, array in norm.weights.items()
    }
    first = dataclasses.replace(graph.by_name["first"], weights={"kernel": kernel})
    nodes = {"first": first, "norm": dataclasses.replace(norm, weights=weights)}
    zero = dataclasses.replace(graph, nodes=tuple(nodes.get(node.name, node) for node in graph.nodes))
    # As above, with the sums of a 3x3 kernel over 12 channels alone.
    _assert_same(remove(zero, channels, gone), zero, 3.6e-6, 1.2e-6)
    # With a constant of the batch norm it does: what the filter made is then that constant.
    constant = dataclasses.replace(graph, nodes=tuple({"first": first}.get(node.name, node) for node in graph.nodes))
    (whole,), (less,) = _outputs(constant), _outputs(remove(constant, channels, gone))
    assert np.abs(whole - less).max() > 1e-3


def test_nothing_removed_is_the_graph_itself() -> None:
    graph = _graph(_residual())
    assert remove(graph, _analysed(graph), []) is graph


def test_settings_that_count_channels_follow() -> None:
    graph = _graph(_grouped())
    channels = _analysed(graph)
    first, grouped = channels.free
    # One symbol for a channel in each of the four groups.
    assert (first.widths, first.channels, len(first.symbols)) == ((4,), 12, 3)
    assert (grouped.widths, grouped.channels, len(grouped.symbols)) == ((4,), 8, 2)
    pruned = remove(graph, channels, [first.symbols[0], grouped.symbols[1]])
    attributes = {name: pruned.by_name[name].attributes for name in ("first", "grouped", "one_each")}
    assert [attributes[name]["filters"] for name in attributes] == [12 - 4, 8 - 4, 2 * (8 - 4)]
    assert attributes["grouped"]["groups"] == 4
    assert attributes["one_each"]["groups"] == 8 - 4
    assert pruned.by_name["grouped"].weights["kernel"].shape == (3, 3, 8 // 4, 4)


def test_both_parts_of_a_sliced_layer_keep_a_channel() -> None:
    graph = _graph(_grouped_route())
    channels = _analysed(graph)
    whole, half, _ = channels.free
    assert (whole.name, half.name) == ("first", "first")
    assert channels.groups_of("half") == (half,)
    assert set(channels.groups_of("first")) == {whole, half}
    pruned = remove(graph, channels, [*whole.symbols[1:], *half.symbols[:-1]])
    assert pruned.by_name["half"].attributes == {"axis": -1, "start": 1, "stop": 2}
    with pytest.raises(GraphError, match="keeps at least one channel: of 'first' in 'net' all 6 would go"):
        remove(graph, channels, half.symbols)


def test_symbols_that_must_stay_are_refused() -> None:
    graph = _graph(_residual())
    channels = _analysed(graph)
    with pytest.raises(GraphError, match="only channels of free groups are removed: 5 of 6 symbols"):
        remove(graph, channels, [*channels.symbols["last"], channels.free[0].symbols[0]])


def test_scope_and_outputs_freeze_what_they_are_tied_to() -> None:
    graph = _graph(_squeeze_excite())
    channels = analyse(graph, ["first", "reduce", "last"])
    assert _layers_of(channels) == [("reduce",)]
    assert channels.groups[0].frozen == "'expand' is left out by the scope"
    assert channels.reason("expand") == "left out by the scope"
    assert channels.reason("first") == "tied to 'expand', which is left out by the scope"
    assert channels.reason("last") == "an output of the network"
    assert channels.reason("reduce") == ""


def test_a_depthwise_layer_out_of_scope_freezes_its_channels() -> None:
    graph = _graph(_depthwise_multiplied())
    channels = analyse(graph, ["first", "last"])
    assert not channels.free
    assert channels.reason("first") == "tied to 'depthwise', which is left out by the scope"


def test_what_a_head_reads_stays() -> None:
    from toy_network import toy_graph

    graph = dataclasses.replace(toy_graph(), outputs=("conv_2",))
    channels = _analysed(graph)
    assert channels.reason("far") == channels.reason("near") == "an output of the network"


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Unheard", {"recorded_shape": [8, 8, 12]}),
        ("DarknetReorg", {"stride": 2}),
        ("LayerNormalization", {}),
        ("GroupNormalization", {"groups": 3}),
        ("Softmax", {}),
        ("Activation", {"activation": "softmax"}),
        ("Activation", {"activation": {"class_name": "own"}}),
        ("Permute", {"dims": [3, 1, 2]}),
        ("Reshape", {"target_shape": [16, 48]}),
        ("BatchNormalization", {"axis": 1}),
        ("Rescaling", {"scale": [0.5] * 12, "offset": 0.0}),
        ("Add", {"call": {"args": [[{"input": 0}, {"array": {"values": [0.5] * 12}}]], "kwargs": {}}}),
    ],
)
def test_what_has_no_rule_is_frozen_with_what_it_reads(op: str, attributes: dict[str, object]) -> None:
    net = _net()
    net.add("odd", op, "first", **attributes)
    last = net.add("flat", "Flatten", "odd")
    _dense(net, "last", last, shapes(_graph(net))[last][0], 3)
    channels = _analysed(_graph(net))
    assert not channels.free
    assert channels.reason("first") == f"tied to 'odd', which is of a kind whose channels cannot be removed ({op})"


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Softmax", {"axis": [1, 2]}),
        ("Permute", {"dims": [2, 1, 3]}),
        ("Rescaling", {"scale": 0.5, "offset": 1.0}),
        ("Cropping2D", {"cropping": 1}),
        ("MirrorPad", {"padding": [[1, 1], [1, 1]], "mode": "reflect"}),
        ("Concatenate", {"axis": 1}),
        ("Dropout", {"rate": 0.5, "call": {"args": [{"input": 0}], "kwargs": {"training": False}}}),
    ],
)
def test_what_treats_channels_apart_passes_them_on(op: str, attributes: dict[str, object]) -> None:
    net = _net()
    net.add("odd", op, "first", **attributes)
    net.conv("last", "odd", 12, 5)
    channels = _analysed(_graph(net))
    assert _layers_of(channels) == [("first",)]
    np.testing.assert_array_equal(channels.symbols["odd"], channels.symbols["first"])


def test_an_activation_that_mixes_channels_freezes_its_layer() -> None:
    net = _net()
    net.conv("mixed", "first", 12, 6, activation="softmax")
    net.conv("last", "mixed", 6, 5)
    channels = _analysed(_graph(net))
    assert channels.reason("mixed") == "a layer whose activation mixes channels (softmax)"
    assert _layers_of(channels) == [("first",)]


def test_a_layer_that_is_called_twice_stays_as_it_is() -> None:
    net = _net()
    net.conv("twice", "first", 12, 12)
    net.nodes.append(Node("again", "Conv2D", ("twice",), net.nodes[-1].attributes, shared_with="twice"))
    net.conv("free", "again", 12, 8)
    net.conv("last", "free", 8, 5)
    channels = _analysed(_graph(net))
    assert _layers_of(channels) == [("free",)]
    assert channels.reason("first") == "tied to 'twice', which is a layer that is called more than once"
    assert channels.reason("again") == "a layer that is called more than once"


def test_the_picture_freezes_what_is_added_to_it() -> None:
    net = Layers()
    net.conv("same", _image(net), 3, 3)
    net.add("sum", "Add", "image", "same")
    _depthwise(net, "depthwise", "image", 3)
    net.add("more", "Add", "sum", "depthwise")
    net.conv("last", "more", 3, 5)
    channels = _analysed(_graph(net))
    assert not channels.free
    assert channels.reason("same") == "tied to 'image', which is an input of the network"
    assert channels.reason("depthwise")


@st.composite
def _networks(draw: st.DrawFn) -> Graph:
    """Layers one after the other, each of a kind that fits what there is."""
    net = _net()
    made = {"first": (_SIDE, _SIDE, 12)}
    for index in range(draw(st.integers(2, 8))):
        source = draw(st.sampled_from(sorted(made)))
        channels = made[source][-1]
        name, count = f"n{index}", draw(st.integers(1, 6)) * 2
        others = [other for other, shape in sorted(made.items()) if shape == made[source]]
        match draw(st.sampled_from(("conv", "grouped", "norm", "depthwise", "add", "join", "slice", "pool", "excite"))):
            case "conv":
                net.conv(name, source, channels, count)
            case "grouped" if channels % 2 == 0:
                # Filters for each pair of channels, or for each channel.
                groups = draw(st.sampled_from((channels // 2, channels)))
                net.conv(name, source, channels, channels * draw(st.integers(1, 2)), groups=groups)
            case "norm":
                net.norm(name, source, channels)
            case "depthwise":
                _depthwise(net, name, source, channels, draw(st.integers(1, 2)))
            case "add":
                op = draw(st.sampled_from(("Add", "Multiply", "Maximum")))
                net.add(name, op, source, draw(st.sampled_from(others)))
            case "join":
                net.add(name, "Concatenate", source, draw(st.sampled_from(sorted(made))), axis=-1)
            case "slice" if channels > 1:
                start = draw(st.integers(0, channels - 2))
                net.add(name, "Slice", source, axis=-1, start=start, stop=draw(st.integers(start + 1, channels)))
            case "excite":
                net.add(f"{name}_pool", "GlobalAveragePooling2D", source, keepdims=True)
                net.conv(f"{name}_gate", f"{name}_pool", channels, channels, size=1)
                net.add(name, "Multiply", f"{name}_gate", source)
            case _:
                net.add(name, "MaxPooling2D", source, pool_size=2, strides=1, padding="same")
        made[name] = shapes(_graph(net))[name]
    last = net.nodes[-1].name
    net.conv("last", last, made[last][2], 3)
    return _graph(net)


@given(graph=_networks(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_removal_leaves_a_network_whose_shapes_fit(graph: Graph, data: st.DataObject) -> None:
    names = _everything(graph)
    channels = analyse(graph, data.draw(st.sets(st.sampled_from(names))) if data.draw(st.booleans()) else names)
    removed: list[int] = []
    for group in channels.free:
        count = data.draw(st.integers(0, len(group.symbols) - 1))
        removed += data.draw(st.permutations(group.symbols.tolist()))[:count]
    pruned = remove(graph, channels, removed)
    found = shapes(pruned)
    for name, symbols in channels.symbols.items():
        assert found[name][-1] == np.isin(symbols, removed, invert=True).sum() >= 1


def _real_net(real_data: Path, cfg: str) -> Graph:
    path = real_data / "weights" / cfg
    return read_darknet(path, path.with_suffix(".weights"), None)


_CFGS = (
    "MobileNetV2-YOLOv3-Nano-voc.cfg",
    "coco-yolo-fastest-1.1-xl.cfg",
    "voc-yolo-fastest-xl.cfg",
    "voc-yolo-fastest.cfg",
    "yolo-lite-voc-trial3-noBatch.cfg",
    "yolov4-tiny.cfg",
)


@pytest.mark.real_data
@pytest.mark.parametrize("cfg", _CFGS)
def test_every_real_net_but_its_predictions_can_lose_half(cfg: str, real_data: Path) -> None:
    graph = _real_net(real_data, cfg)
    channels = _analysed(graph)
    assert {group.why for group in channels.groups} == {"", "an output of the network"}
    removed = _half(channels)
    pruned = remove(graph, channels, removed)
    assert [shapes(pruned)[name] for name in graph.outputs] == [shapes(graph)[name] for name in graph.outputs]
    # Of inputs and outputs half is left.
    assert cost(pruned).total < 0.4 * cost(graph).total


@pytest.mark.real_data
@pytest.mark.parametrize("cfg", _CFGS)
def test_a_real_net_computes_what_the_zeroed_one_does(cfg: str, real_data: Path) -> None:
    graph = _real_net(real_data, cfg)
    image = dataclasses.replace(graph.nodes[0], attributes={"shape": [96, 96, 3]})
    graph = dataclasses.replace(graph, nodes=(image, *graph.nodes[1:]))
    channels = _analysed(graph)
    removed = _half(channels)
    _assert_same(remove(graph, channels, removed), _zeroed(graph, channels, removed), _ABSOLUTE, _RELATIVE)


def test_the_reference_network_computes_what_the_zeroed_one_does() -> None:
    """In the scope that was published. With random weights activations shrink layer by layer, and its batch norms have
    no constants yet: the tighter bound, that of filters which are zero themselves, is the one to hold."""
    graph = build_yolov4(YoloV4(labels=tuple("abcdefghijklmnopqrst"), size=(64, 64)), seed=1)[0]
    excluded = ("block1a_se_reduce ~ block7b_add", "top_conv", "conv2d_36", "conv2d_28", "conv2d_20")
    channels = analyse(graph, select(graph, [], excluded))
    removed = _half(channels)
    pruned = _outputs(remove(graph, channels, removed), 1)
    zeroed = _outputs(_zeroed(graph, channels, removed), 1)
    difference, size = (
        np.linalg.norm(np.concatenate([array.ravel() for array in arrays]))
        for arrays in ([one - other for one, other in zip(pruned, zeroed, strict=True)], zeroed)
    )
    assert difference <= 1.2e-6 * size
