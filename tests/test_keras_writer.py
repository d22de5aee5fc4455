"""Graphs as Keras models: ops of ours, determinism, and refusals."""

import random
from typing import Any

import numpy as np
import pytest

from deploy.errors import GraphError
from toolchain.graph import Graph, Node
from toolchain.keras_reader import from_keras
from toolchain.keras_writer import to_keras
from toolchain.shapes import shapes

_SHAPE = (4, 6, 8)


def _graph(op: str, attributes: dict[str, Any], shape: tuple[int, ...] = _SHAPE, **weights: np.ndarray) -> Graph:
    nodes = (Node("image", "InputLayer", (), {"shape": list(shape)}), Node("node", op, ("image",), attributes, weights))
    return Graph("net", nodes, ("node",))


def _picture(shape: tuple[int, ...] = _SHAPE, batch: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, *shape)).astype(np.float32)


def _run(graph: Graph, picture: np.ndarray) -> np.ndarray:
    return np.asarray(to_keras(graph)(picture))


def _darknet_reorg(picture: np.ndarray, stride: int) -> np.ndarray:
    """reorg_cpu of darknet's blas.c, index by index, for one picture (h, w, c)."""
    buffer = picture.transpose(2, 0, 1)
    channels, height, width = buffer.shape
    flat, result, out_channels = buffer.ravel(), np.zeros(buffer.size, np.float32), channels // stride**2
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                row, column = j * stride + k // out_channels // stride, i * stride + k // out_channels % stride
                result[i + width * (j + height * k)] = flat[
                    column + width * stride * (row + height * stride * (k % out_channels))
                ]
    return result.reshape(channels * stride**2, height // stride, width // stride).transpose(1, 2, 0)


def _nearest(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = ((np.arange(height) + 0.5) * picture.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * picture.shape[2] / width).astype(int)
    return picture[:, rows][:, :, columns]


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Slice", {"axis": -1, "start": 2, "stop": 5}, lambda x: x[..., 2:5]),
        ("Slice", {"axis": -2, "start": 1, "stop": 4}, lambda x: x[:, :, 1:4]),
        ("Slice", {"axis": -3, "start": 0, "stop": 2}, lambda x: x[:, 0:2]),
        ("Resize", {"height": 8, "width": 12, "interpolation": "nearest"}, lambda x: x.repeat(2, 1).repeat(2, 2)),
        ("Resize", {"height": 10, "width": 9, "interpolation": "nearest"}, lambda x: _nearest(x, 10, 9)),
        (
            "MirrorPad",
            {"padding": [[1, 2], [3, 0]], "mode": "symmetric"},
            lambda x: np.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), "symmetric"),
        ),
        (
            "MirrorPad",
            {"padding": [[1, 2], [3, 0]], "mode": "reflect"},
            lambda x: np.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), "reflect"),
        ),
        ("DarknetReorg", {"stride": 2}, lambda x: np.stack([_darknet_reorg(picture, 2) for picture in x])),
    ],
)
def test_ops_of_ours(op: str, attributes: dict[str, Any], expected: Any) -> None:
    graph = _graph(op, attributes)
    model = to_keras(graph)
    picture = _picture()
    np.testing.assert_array_equal(np.asarray(model(picture)), expected(picture))
    assert model.output_shape == (None, *shapes(graph)["node"])
    back = from_keras(model)
    assert [(node.name, node.op, dict(node.attributes)) for node in back.nodes] == [
        (node.name, node.op, dict(node.attributes)) for node in graph.nodes
    ]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("linear", lambda x: x),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("logistic", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("swish", lambda x: x / (1 + np.exp(-x))),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("hard_silu", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("hard_swish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("hard_sigmoid", lambda x: np.clip(x + 3, 0, 6) / 6),
        ("softplus", lambda x: np.log1p(np.exp(x))),
        ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("selu", lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    ],
)
def test_activations(name: str, function: Any) -> None:
    picture = 3 * _picture()
    # Keras computes in float32, the formula here in float64: a few steps of the largest value.
    bound = 8 * np.finfo(np.float32).eps * np.abs(picture).max()
    np.testing.assert_allclose(
        _run(_graph("Activation", {"activation": name}), picture), function(picture.astype(float)), rtol=0, atol=bound
    )


def test_a_convolution_takes_what_it_does_not_say_from_its_weights() -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 6)).astype(np.float32)
    model = to_keras(_graph("Conv2D", {"groups": 2, "strides": 2}, kernel=kernel))
    layer = model.get_layer("node")
    assert (layer.filters, layer.kernel_size, layer.use_bias) == (6, (3, 3), False)
    np.testing.assert_array_equal(np.asarray(layer.kernel), kernel)


def test_weights_and_outputs_come_back_exactly_and_twice_the_same() -> None:
    rng = np.random.default_rng(1)
    graph = _graph(
        "Dense",
        {"units": 5},
        kernel=rng.normal(size=(8, 5)).astype(np.float32),
        bias=rng.normal(size=5).astype(np.float32),
    )
    picture = _picture()
    first, second = to_keras(graph), to_keras(graph)
    np.testing.assert_array_equal(np.asarray(first(picture)), np.asarray(second(picture)))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers] == ["image", "node"]
    assert first.name == "net"
    np.testing.assert_array_equal(first.get_layer("node").get_weights()[0], graph.nodes[1].weights["kernel"])


def test_no_random_state_is_drawn_from() -> None:
    kernel = np.zeros((3, 3, 8, 6), np.float32)
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    to_keras(_graph("Conv2D", {}, kernel=kernel, bias=np.zeros(6, np.float32)))
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], numpy)


def test_shared_weights_are_one_layer() -> None:
    kernel = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    nodes = (
        Node("image", "InputLayer", (), {"shape": list(_SHAPE)}),
        Node("a", "Dense", ("image",), {"units": 8}, {"kernel": kernel}),
        Node("b", "Dense", ("a",), {"units": 8}, shared_with="a"),
        Node("c", "Dense", ("b",), {"units": 8}, shared_with="b"),
    )
    model = to_keras(Graph("net", nodes, ("c", "a")))
    assert model.count_params() == 8 * 8
    found = model(_picture())
    # Three float32 products of eight terms each.
    np.testing.assert_allclose(np.asarray(found[0]), _picture() @ kernel @ kernel @ kernel, rtol=0, atol=1e-3)
    assert [tuple(output.shape) for output in found] == [(3, *_SHAPE)] * 2


def test_several_inputs_a_fixed_batch_and_other_types() -> None:
    nodes = (
        Node("image", "InputLayer", (), {"shape": [2, 2, 3], "batch_size": 1, "dtype": "uint8"}),
        Node("more", "InputLayer", (), {"shape": [2, 2, 3], "batch_size": 1}),
        Node("scaled", "Rescaling", ("image",), {"scale": 0.5, "offset": 1.0}),
        Node("sum", "Add", ("scaled", "more")),
    )
    graph = Graph("net", nodes, ("sum",))
    model = to_keras(graph)
    assert model.input_shape == [(1, 2, 2, 3), (1, 2, 2, 3)]
    found = model([np.full((1, 2, 2, 3), 8, np.uint8), np.ones((1, 2, 2, 3), np.float32)])
    np.testing.assert_array_equal(np.asarray(found), np.full((1, 2, 2, 3), 8 * 0.5 + 1 + 1, np.float32))
    assert dict(from_keras(model).nodes[0].attributes) == dict(nodes[0].attributes)


def test_a_frozen_layer_stays_frozen() -> None:
    model = to_keras(_graph("Dense", {"units": 5, "trainable": False}, kernel=np.zeros((8, 5), np.float32)))
    assert model.trainable_weights == [] and len(model.weights) == 1


@pytest.mark.parametrize(
    ("op", "attributes", "weights", "sentence"),
    [
        ("Sorcery", {"recorded_shape": [1]}, {}, "'Sorcery' of 'node' is neither"),
        (
            "Conv2D",
            {"kernel_size": 3, "filters": 4},
            {},
            r"has \[\(3, 3, 8, 4\), \(4,\)\] in Keras, the graph gives \[\]",
        ),
        (
            "Dense",
            {},
            {"kernel": np.zeros((7, 5), np.float32)},
            r"has \[\(8, 5\)\] in Keras, the graph gives \[\(7, 5\)\]",
        ),
        ("Activation", {"activation": "no such"}, {}, "Activation 'node' was refused"),
        ("MaxPooling2D", {"pool": 2}, {}, "MaxPooling2D 'node' was refused"),
        ("Slice", {"axis": 0, "start": 0, "stop": 1}, {}, "a slice's axis counts from the end"),
        ("Resize", {"height": 3}, {}, "Resize 'node' was refused"),
        (
            "Lambda",
            {"function": {"class_name": "__lambda__", "config": {"code": "AAAA"}}, "recorded_shape": [1]},
            {},
            "a Lambda runs code",
        ),
        (
            "ops.Popen",
            {"module": "subprocess", "recorded_shape": [1]},
            {},
            "comes from keras.ops: 'Popen' is of 'subprocess'",
        ),
        ("ops.path", {"module": "keras.src.ops.numpy", "recorded_shape": [1]}, {}, "this Keras has no 'path'"),
        (
            "Dense",
            {
                "units": 1,
                "kernel_regularizer": {"module": "os", "class_name": "system", "config": {}, "registered_name": None},
            },
            {},
            "only Keras's own layers and objects are read: Dense 'node' is or uses 'system'",
        ),
        ("Dense", {"call": {"args": [{"code": 1}]}, "units": 1}, {}, "'code' is unknown"),
    ],
)
def test_what_keras_cannot_build_is_refused_by_name(
    op: str, attributes: dict[str, Any], weights: Any, sentence: str
) -> None:
    with pytest.raises(GraphError, match=sentence) as caught:
        to_keras(_graph(op, attributes, **weights))
    assert "\n" not in str(caught.value)


def test_a_graph_without_outputs_is_refused() -> None:
    with pytest.raises(GraphError, match="has 1 and 0"):
        to_keras(Graph("net", (Node("image", "InputLayer", (), {"shape": [1]}),), ()))
