"""Graphs as tf_keras models: the same numbers as Keras's, and back."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import GraphError
from keras_models import outputs, randomize
from toolchain.darknet_reader import read_darknet
from toolchain.graph import Graph, Node
from toolchain.keras_reader import from_keras
from toolchain.keras_writer import to_keras, with_weights_of
from toolchain.tf_keras_writer import activations_apart, to_tf_keras
from toy_network import SIDE, toy_graph

#: Of the largest output: two libraries add up the same products in another order, layer after layer.
_ROUNDING = 32 * np.finfo(np.float32).eps


def _outputs(model: Any, pictures: np.ndarray, **keywords: Any) -> list[np.ndarray]:
    import tensorflow as tf

    return [np.asarray(output) for output in tf.nest.flatten(model(pictures, **keywords))]


def _assert_same(graph: Graph, pictures: np.ndarray) -> None:
    for found, expected in zip(_outputs(to_tf_keras(graph), pictures), outputs(to_keras(graph), pictures), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=_ROUNDING * np.abs(expected).max())


def _pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("activation", ["silu", "mish", "relu6", "hard_sigmoid", "hard_swish"])
def test_a_network_with_every_kind_of_layer_is_the_same(activation: str) -> None:
    _assert_same(toy_graph(activation), np.random.default_rng(0).uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32))


def _layers() -> dict[str, list[Any]]:
    from keras import constraints, layers, regularizers

    return {
        "convolution": [
            layers.Conv2D(8, 3, kernel_regularizer=regularizers.l2(1e-4), kernel_constraint=constraints.MaxNorm(2.0)),
            layers.Conv2D(8, 3, groups=2, dilation_rate=2, padding="same"),
        ],
        "activations": [
            layers.Conv2D(6, 1, activation=name) for name in ("hard_sigmoid", "hard_silu", "leaky_relu", "gelu", "mish")
        ],
        "depthwise": [layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, activation="swish")],
        "separable": [layers.SeparableConv2D(8, 3, depth_multiplier=2)],
        "transposed": [layers.Conv2DTranspose(8, 3, strides=2, padding="same")],
        "dense": [layers.Flatten(), layers.Dense(5, activation="tanh")],
        "batch norm": [layers.BatchNormalization(), layers.BatchNormalization(scale=False, center=False)],
        "other norms": [layers.LayerNormalization(), layers.GroupNormalization(2), layers.Normalization()],
        "prelu": [layers.PReLU(shared_axes=[1, 2])],
        "without weights": [
            layers.Rescaling(2.0, 1.0),
            layers.ReLU(6.0, 0.1, 0.2),
            layers.ZeroPadding2D(1),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Softmax(),
        ],
    }


@pytest.mark.parametrize("kind", list(_layers()))
def test_keras_layers_are_the_same(kind: str) -> None:
    import keras

    tensor = image = keras.Input((8, 8, 6))
    for layer in _layers()[kind]:
        tensor = layer(tensor)
    _assert_same(from_keras(randomize(keras.Model(image, tensor))), _pictures(2, 8, 8, 6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "names"),
    [
        ("voc-yolo-fastest-xl", "voc"),
        ("yolov4-tiny", "coco"),
        ("MobileNetV2-YOLOv3-Nano-voc", "voc"),
        ("yolo-lite-voc-trial3-noBatch", "voc"),
    ],
)
def test_real_networks_are_the_same(net: str, names: str, real_data: Path) -> None:
    weights = real_data / "weights"
    graph = read_darknet(weights / f"{net}.cfg", weights / f"{net}.weights", weights / f"{names}.names")
    assert graph.input is not None
    size = (2, graph.input.height, graph.input.width, 3)
    _assert_same(graph, np.random.default_rng(0).uniform(0, 1, size).astype(np.float32))


def test_weights_come_back_exactly() -> None:
    graph = toy_graph()
    model = to_tf_keras(graph)
    kernel, bias = model.get_layer("near").get_weights()
    model.get_layer("near").set_weights([kernel + 1, bias])
    back = with_weights_of(graph, model)
    for before, after in zip(graph.nodes, back.nodes, strict=True):
        assert (before.name, before.op, before.inputs, before.attributes) == (
            after.name,
            after.op,
            after.inputs,
            after.attributes,
        )
        for name, value in before.weights.items():
            wanted = value + 1 if (before.name, name) == ("near", "kernel") else value
            np.testing.assert_array_equal(after.weights[name], wanted)
            assert after.weights[name].dtype == value.dtype


def test_a_copy_of_the_model_is_the_same() -> None:
    # What tensorflow-model-optimization wraps are copies.
    import tf_keras

    model = to_tf_keras(toy_graph())
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    pictures = _pictures(1, SIDE, SIDE, 3)
    for found, expected in zip(_outputs(copy, pictures), _outputs(model, pictures), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_batch_norm_uses_the_batch_in_training_unless_it_is_steady() -> None:
    weights = {
        "gamma": [2.0, -1.0],
        "beta": [0.5, 0.0],
        "moving_mean": [3.0, 1.0],
        "moving_variance": [4.0, 9.0],
    }
    arrays = {name: np.array(value, np.float32) for name, value in weights.items()}
    image = Node("image", "InputLayer", (), {"shape": [4, 4, 2]})
    norm = Node("norm", "BatchNormalization", ("image",), {"epsilon": 1e-3}, arrays)
    graph, pictures = Graph("net", (image, norm), ("norm",)), _pictures(8, 4, 4, 2)
    by_batch = (pictures - pictures.mean((0, 1, 2))) / np.sqrt(pictures.var((0, 1, 2)) + 1e-3)
    by_average = (pictures - arrays["moving_mean"]) / np.sqrt(arrays["moving_variance"] + 1e-3)
    for steady, normal in ((False, by_batch), (True, by_average)):
        model = to_tf_keras(graph, steady=steady)
        (found,) = _outputs(model, pictures, training=True)
        np.testing.assert_allclose(found, normal * arrays["gamma"] + arrays["beta"], rtol=0, atol=1e-5)
        assert [variable.name.split("/")[1] for variable in model.trainable_variables] == ["gamma:0", "beta:0"]
        moved = not np.array_equal(model.get_layer("norm").get_weights()[2], arrays["moving_mean"])
        assert moved == (not steady)


def test_a_dropout_drops_in_training_alone() -> None:
    image = Node("image", "InputLayer", (), {"shape": [50, 50, 4]})
    graph = Graph("net", (image, Node("drop", "Dropout", ("image",), {"rate": 0.25})), ("drop",))
    model, ones = to_tf_keras(graph), np.ones((1, 50, 50, 4), np.float32)
    np.testing.assert_array_equal(_outputs(model, ones)[0], ones)
    (found,) = _outputs(model, ones, training=True)
    # 10,000 coins; 6 standard deviations of sqrt(0.25 * 0.75 / 10,000).
    assert abs((found == 0).mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / 10_000)


def test_shared_weights_are_one_layer_and_frozen_ones_are_not_trained() -> None:
    kernel = _pictures(8, 8)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [2, 2, 8]}),
        Node("a", "Dense", ("image",), {"units": 8, "trainable": False}, {"kernel": kernel}),
        Node("b", "Dense", ("a",), {"units": 8}, shared_with="a"),
    )
    model = to_tf_keras(Graph("net", nodes, ("b", "a")))
    assert len(model.weights) == 1 and model.trainable_weights == []
    pictures = _pictures(1, 2, 2, 8)
    np.testing.assert_allclose(_outputs(model, pictures)[0], pictures @ kernel @ kernel, rtol=0, atol=1e-4)


def test_a_node_may_read_another_twice() -> None:
    nodes = (Node("image", "InputLayer", (), {"shape": [2, 2, 3]}), Node("sum", "Add", ("image", "image")))
    pictures = _pictures(1, 2, 2, 3)
    np.testing.assert_array_equal(_outputs(to_tf_keras(Graph("net", nodes, ("sum",))), pictures)[0], 2 * pictures)


def test_activations_get_nodes_of_their_own_under_names_that_are_free() -> None:
    kernel = _pictures(1, 1, 3, 3)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [2, 2, 3]}),
        Node("a", "Conv2D", ("image",), {"activation": "relu"}, {"kernel": kernel}),
        Node("a_activation", "Activation", ("a",), {"activation": "tanh"}),
        Node("b", "Conv2D", ("a_activation",), {"activation": "linear"}, {"kernel": kernel}),
    )
    apart = activations_apart(Graph("net", nodes, ("a", "b")))
    assert [(node.name, node.op, node.inputs) for node in apart.nodes] == [
        ("image", "InputLayer", ()),
        ("a", "Conv2D", ("image",)),
        ("a_activation_", "Activation", ("a",)),
        ("a_activation", "Activation", ("a_activation_",)),
        ("b", "Conv2D", ("a_activation",)),
    ]
    assert apart.outputs == ("a_activation_", "b")
    assert apart.by_name["a"].attributes["activation"] == "linear"


def test_an_activation_behind_a_raw_output_is_the_heads_output() -> None:
    graph = toy_graph()
    (near,) = [node for node in graph.nodes if node.name == "near"]
    active = dataclasses.replace(near, attributes={**near.attributes, "activation": "tanh"})
    changed = dataclasses.replace(graph, nodes=(*graph.nodes[:-1], active))
    apart = activations_apart(changed)
    assert apart.head is not None
    assert [scale.outputs["raw"] for scale in apart.head.scales] == ["far", "near_activation"]


@pytest.mark.parametrize(
    ("op", "attributes", "weights", "sentence"),
    [
        ("Embedding", {}, {"embeddings": (2, 2)}, "Embedding 'odd' has none"),
        ("Conv2D", {}, {"kernel": (1, 1, 5, 2)}, "weights fit their layer"),
        ("Conv2D", {"sides": 3}, {"kernel": (1, 1, 3, 2)}, "Conv2D 'odd' was refused"),
        ("Sorcery", {}, {}, "'Sorcery' of 'odd' is neither"),
        ("Activation", {"activation": "no such"}, {}, "Activation 'odd' was refused"),
    ],
)
def test_what_tf_keras_cannot_build_is_refused_by_name(
    op: str, attributes: dict[str, Any], weights: dict[str, tuple[int, ...]], sentence: str
) -> None:
    image = Node("image", "InputLayer", (), {"shape": [2, 2, 3]})
    arrays = {name: np.zeros(shape, np.float32) for name, shape in weights.items()}
    node = Node("odd", op, ("image",), attributes, arrays)
    with pytest.raises(GraphError, match=sentence) as caught:
        to_tf_keras(Graph("net", (image, node), ("odd",)))
    assert "\n" not in str(caught.value)


def test_a_graph_without_outputs_is_refused() -> None:
    with pytest.raises(GraphError, match="has 1 and 0"):
        to_tf_keras(Graph("net", (Node("image", "InputLayer", (), {"shape": [1]}),), ()))
