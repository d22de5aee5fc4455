"""Parameters and FLOPs, by arithmetic, and on the published reference network."""

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


class _Net:
    """Appends nodes and remembers channels."""

    def __init__(self, graph: Graph) -> None:
        from toolchain.shapes import shapes

        self.nodes = list(graph.nodes)
        self.channels = {name: shape[-1] for name, shape in shapes(graph).items()}

    def add(
        self,
        name: str,
        op: str,
        sources: tuple[str, ...],
        attributes: dict[str, Any],
        channels: int,
        **weights: np.ndarray,
    ) -> str:
        self.nodes.append(Node(name, op, sources, attributes, weights))
        self.channels[name] = channels
        return name

    def conv(self, source: str, filters: int, kernel: int = 1, stride: int = 1) -> str:
        name = f"conv2d_{sum(node.name.startswith('conv2d_') for node in self.nodes)}"
        if stride == 2:
            source = self.add(
                f"pad_{name}", "ZeroPadding2D", (source,), {"padding": [[1, 0], [1, 0]]}, self.channels[source]
            )
        attributes = {"strides": stride, "padding": "valid" if stride == 2 else "same"}
        weights = _zeros(kernel, kernel, self.channels[source], filters)
        made = self.add(name, "Conv2D", (source,), attributes, filters, kernel=weights)
        statistics = {key: _zeros(filters) for key in ("gamma", "beta", "moving_mean", "moving_variance")}
        normal = self.add(f"bn_{name}", "BatchNormalization", (made,), {}, filters, **statistics)
        return self.add(f"leaky_{name}", "LeakyReLU", (normal,), {"negative_slope": 0.1}, filters)

    def five(self, source: str, filters: int) -> str:
        for index in range(5):
            source = self.conv(source, filters * (1 + index % 2), 1 + 2 * (index % 2))
        return source

    def prediction(self, source: str, filters: int, classes: int) -> str:
        last = self.conv(source, 2 * filters, 3)
        channels = 3 * (5 + classes)
        weights = {"kernel": _zeros(1, 1, 2 * filters, channels), "bias": _zeros(channels)}
        return self.add(f"predict_{filters}", "Conv2D", (last,), {}, channels, **weights)

    def concat(self, *sources: str) -> str:
        return self.add(
            f"concat_{len(self.nodes)}", "Concatenate", sources, {}, sum(self.channels[source] for source in sources)
        )

    def up(self, source: str) -> str:
        return self.add(f"up_{len(self.nodes)}", "UpSampling2D", (source,), {}, self.channels[source])


def _yolo4_head(backbone: Graph, classes: int) -> Graph:
    """The full YOLOv4 head, as keras-YOLOv3-model-set has it at v1.2.0."""
    net = _Net(backbone)
    source = "top_activation"
    for index in range(3):
        source = net.conv(source, (640, 1280, 640)[index], (1, 3, 1)[index])
    pools = [
        net.add(f"pool_{size}", "MaxPooling2D", (source,), {"pool_size": size, "strides": 1, "padding": "same"}, 640)
        for size in (13, 9, 5)
    ]
    source = net.concat(*pools, source)
    for index in range(3):
        source = net.conv(source, (640, 1280, 640)[index], (1, 3, 1)[index])
    deep = source
    middle = net.five(net.concat(net.conv("block6a_expand_activation", 336), net.up(net.conv(deep, 336))), 336)
    fine = net.five(net.concat(net.conv("block4a_expand_activation", 120), net.up(net.conv(middle, 120))), 120)
    outputs = [net.prediction(fine, 120, classes)]
    middle = net.five(net.concat(net.conv(fine, 336, 3, 2), middle), 336)
    outputs.append(net.prediction(middle, 336, classes))
    deep = net.five(net.concat(net.conv(middle, 640, 3, 2), deep), 640)
    outputs.append(net.prediction(deep, 640, classes))
    return Graph("yolo4_efficientnet_b1", tuple(net.nodes), tuple(outputs))


@pytest.mark.slow
def test_the_published_reference_network() -> None:
    """YOLOv4 on EfficientNet-B1 at 512x512 with 20 classes: every published count, exactly."""
    import keras

    from toolchain.graph import reachable
    from toolchain.keras_reader import from_keras

    model = keras.applications.EfficientNetB1(include_top=False, weights=None, input_shape=(512, 512, 3))
    backbone = from_keras(model)
    # The published one gets its pictures normalized.
    image = next(node for node in backbone.nodes if node.op == "InputLayer")
    kept = []
    for node in backbone.nodes:
        if node.op in ("Rescaling", "Normalization"):
            continue
        inputs = tuple(
            image.name if backbone.by_name[name].op in ("Rescaling", "Normalization") else name for name in node.inputs
        )
        kept.append(Node(node.name, node.op, inputs, node.attributes, node.weights))
    graph = reachable(_yolo4_head(Graph(backbone.name, tuple(kept), backbone.outputs), classes=20))
    found = cost(graph)
    assert (found.trainable, found.non_trainable, found.total) == (65_321_441, 100_496, 65_421_937)
    assert found.flops == 61_871_821_972
    assert found.flops_unknown == ()
    convolutions = [node for node in graph.nodes if node.op in ("Conv2D", "DepthwiseConv2D")]
    assert len(convolutions) == 153
    parts = node_costs(graph)
    pools = sum(parts[node.name].flops for node in graph.nodes if node.op == "MaxPooling2D")
    assert pools == 45_056_000
