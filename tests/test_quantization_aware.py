import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_edge_litert.interpreter import Interpreter
from deploy.errors import InputError
from small_training import TRAINING, data, small_graph, train_here
from toolchain.activation_runs import read_pictures, values_of
from toolchain.graph import Graph, Node
from toolchain.keras_writer import to_keras, with_weights_of
from toolchain.quantization_aware import (
    QuantizationAware,
    Rounding,
    _keeper,
    _wrapped,
    quantization_aware,
    roundings,
)
from toolchain.quantize import Int8, quantize
from toolchain.reference import by_role
from toolchain.tf_keras_writer import activations_apart, to_tf_keras
from toy_network import SIDE, converted, toy_graph

KERNEL, OUTPUT, BOTH = Rounding("kernel"), Rounding(output=True), Rounding("kernel", True)


def placed(graph: Graph, without: Collection[str] = (), frozen: Collection[str] = ()) -> dict[str, Rounding]:
    apart = activations_apart(graph)
    return roundings(apart, {node.name for node in apart.nodes} - set(without), frozen)


def wrapped(graph: Graph, preserve: Collection[str] = ()) -> Any:
    places = {name: dataclasses.asdict(place) for name, place in placed(graph).items()}
    return _wrapped(to_tf_keras(graph, steady=True), 10, {"places": places, "preserve": list(preserve)})


def pictures(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, SIDE, SIDE, 3)).astype(np.float32)


def run(model: Any, images: np.ndarray, training: bool = False) -> list[np.ndarray]:
    return [np.asarray(output) for output in model(images, training=training)]


def decibels(exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).mean() / np.square(exact - rounded).mean()))


def test_what_the_int8_file_rounds_is_rounded_and_nothing_else() -> None:
    assert placed(toy_graph()) == {
        # One operation with its batch norm; LeakyReLU is one of its own.
        "conv_0": KERNEL,
        "conv_0_bn": OUTPUT,
        "conv_0_activation": OUTPUT,
        # One operation with its batch norm and ReLU6.
        "conv_1": KERNEL,
        "conv_1_activation": OUTPUT,
        "grouped": BOTH,
        "shaped": OUTPUT,
        "depthwise": Rounding("depthwise_kernel", True),
        "conv_2": BOTH,
        "residual": OUTPUT,
        "conv_3": BOTH,
        "joined": OUTPUT,
        # The file splits raw outputs by role.
        "far": KERNEL,
        "near": KERNEL,
    }


def test_scope_frozen_and_shared_layers_stay_in_float() -> None:
    graph = toy_graph()
    conv = graph.by_name["conv_2"]
    again = dataclasses.replace(conv, name="again", inputs=("conv_2",), weights={}, shared_with="conv_2")
    found = placed(dataclasses.replace(graph, nodes=(*graph.nodes, again)), without=("grouped",), frozen=("conv_1",))
    assert {"grouped", "conv_1", "conv_2", "again"}.isdisjoint(found)
    # The frozen layer's batch norm is one of its own then, and so is what is behind it.
    assert found["conv_1_activation"] == OUTPUT


@pytest.mark.parametrize(
    ("op", "attributes", "rounds"),
    [
        ("Multiply", {}, True),
        ("GlobalAveragePooling2D", {}, True),
        ("MaxPooling2D", {}, False),
        ("UpSampling2D", {"interpolation": "bilinear"}, True),
        ("UpSampling2D", {"interpolation": "nearest"}, False),
        ("Activation", {"activation": "hard_swish"}, True),
        ("Activation", {"activation": "linear"}, False),
        ("Activation", {"activation": "mish"}, False),
        ("ELU", {}, False),
    ],
)
def test_an_output_is_rounded_where_it_has_its_own_range(op: str, attributes: dict[str, Any], rounds: bool) -> None:
    inputs = ("image", "image") if op == "Multiply" else ("image",)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [4, 4, 2]}),
        Node("node", op, inputs, attributes),
        Node("end", "Flatten", ("node",)),
    )
    assert ("node" in placed(Graph("net", nodes, ("end",)))) == rounds


@pytest.mark.parametrize(
    ("op", "attributes", "fused"),
    [
        ("ReLU", {}, True),
        ("ReLU", {"max_value": 6.0}, True),
        ("ReLU", {"max_value": 4.0}, False),
        ("ReLU", {"negative_slope": 0.1}, False),
        ("Activation", {"activation": "relu"}, True),
        ("Activation", {"activation": "silu"}, False),
    ],
)
def test_nothing_is_rounded_before_a_relu(op: str, attributes: dict[str, Any], fused: bool) -> None:
    image = Node("image", "InputLayer", (), {"shape": [4, 4, 2]})
    nodes = [image, Node("sum", "Add", ("image", "image")), Node("act", op, ("sum",), attributes)]
    graph = Graph("net", (*nodes, Node("end", "Flatten", ("act",))), ("end",))
    assert ("sum" in placed(graph)) == (not fused)
    # Not where somebody else reads it too.
    other = Graph("net", (*nodes, Node("end", "Add", ("act", "sum"))), ("end",))
    assert "sum" in placed(other)


def test_an_activation_inside_a_layer_is_rounded_behind_it() -> None:
    kernel = np.ones((1, 1, 2, 2), np.float32)
    nodes = (
        Node("image", "InputLayer", (), {"shape": [4, 4, 2]}),
        Node("conv", "Conv2D", ("image",), {"activation": "relu6"}, {"kernel": kernel}),
        Node("end", "Flatten", ("conv",)),
    )
    assert placed(Graph("net", nodes, ("end",))) == {"conv": KERNEL, "conv_activation": OUTPUT}


def test_kernels_are_rounded_by_channel_to_127_steps_each_side() -> None:
    from toolchain.eight_bit import KernelQuantizer

    rng = np.random.default_rng(0)
    for channels, shape, axes in ((1, (3, 3, 4, 5), (0, 1, 2)), (2, (3, 3, 4, 2), (0, 1))):
        kernel = rng.normal(size=shape).astype(np.float32) * rng.uniform(0.1, 10, shape[-channels:]).astype(np.float32)
        kernel[..., 0] = 0
        step = np.abs(kernel).max(axes, keepdims=True) / 127
        expected = np.round(kernel / np.where(step > 0, step, 1)) * step
        found = np.asarray(KernelQuantizer(channels)(_tensor(kernel), True, {}))
        # A value halfway between two steps may go to either.
        wrong = np.abs(found - expected) > 1e-5 * step
        assert wrong.mean() < 0.01 and (np.abs(found - expected) <= 1.001 * step).all()
        assert (found[..., 0] == 0).all()


def _tensor(array: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(array)


def test_a_tensors_range_starts_at_the_first_batch_and_moves() -> None:
    import tensorflow as tf

    from toolchain.eight_bit import TensorQuantizer

    quantizer = TensorQuantizer(0.75)
    ranges = {name: tf.Variable(0.0) for name in ("min", "max", "seen")}
    # The mean of the pictures' extremes: -1 and -3, 4 and 8.
    first = np.array([[-1, 0, 4], [-3, 2, 8]], np.float32)
    found = np.asarray(quantizer(_tensor(first), True, ranges))
    assert (float(ranges["min"]), float(ranges["max"])) == (-2, 6)
    # 255 steps between them; what is beyond is cut off. Zero is one of the values, so all may be moved by half a step.
    step = 8 / 255
    np.testing.assert_allclose(found, np.clip(first, -2, 6), rtol=0, atol=step)
    assert found[0, 1] == 0
    quantizer(_tensor(np.array([[1.0, 2.0]], np.float32)), True, ranges)
    # Zero stays inside: no least value above it.
    assert (float(ranges["min"]), float(ranges["max"])) == (0.75 * -2 + 0.25 * 0, 0.75 * 6 + 0.25 * 2)
    quantizer(_tensor(np.array([[100.0]], np.float32)), False, ranges)
    assert float(ranges["max"]) == 0.75 * 6 + 0.25 * 2


@pytest.mark.parametrize("activation", ["silu", "relu6", "mish"])
def test_without_its_roundings_the_model_is_the_graph_that_is_handed_back(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch)
    from toolchain import eight_bit

    graph = toy_graph(activation)
    model = wrapped(graph)
    moved = [variable.assign(variable * 1.05 + 0.01) for variable in model.model.trainable_variables]
    assert len(moved) == sum(len(set(node.weights) - {"moving_mean", "moving_variance"}) for node in graph.nodes)
    back = with_weights_of(graph, model.strip())
    for kind in (eight_bit.KernelQuantizer, eight_bit.TensorQuantizer):
        monkeypatch.setattr(kind, "__call__", lambda self, inputs, training, weights, **more: inputs)
    exact = run(model.model, pictures())
    for found, expected in zip(to_keras(back)(pictures(), training=False), exact, strict=True):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kernel = graph.by_name["conv_2"].weights["kernel"]
    np.testing.assert_allclose(back.by_name["conv_2"].weights["kernel"], kernel * 1.05 + 0.01, rtol=0, atol=1e-6)


def test_the_roundings_cost_what_those_of_the_int8_file_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The pictures that the file is calibrated on. Its channels stay as they are, as they do in the training.
    file, shown = tmp_path / "int8.tflite", sorted((converted() / "pictures").iterdir())
    graph, float_file = toy_graph(), converted() / "float32.tflite"
    quantize(float_file, "int8", file, graph=graph, pictures=shown, int8=Int8(equalize=False))
    train_here(monkeypatch)
    assert graph.input is not None
    images = values_of(read_pictures(graph, [str(path) for path in shown], tmp_path), graph.input)
    # A dropout would double what is left of a tensor, and its range.
    idle = dataclasses.replace(graph.by_name["dropout"], attributes={"rate": 0.0})
    nodes = tuple(idle if node.name == "dropout" else node for node in graph.nodes)
    model = wrapped(dataclasses.replace(graph, nodes=nodes)).model
    run(model, images, training=True)
    names = dict(zip(graph.outputs, range(2), strict=True))
    exact, rounded = run(to_keras(graph), images), run(model, images)
    runner = Interpreter(str(file)).get_signature_runner()
    (entry,) = runner.get_input_details().values()
    scale, zero = entry["quantization"]
    as_int8 = np.clip(np.round(images / scale) + zero, -128, 127).astype(np.int8)
    found = [runner(**{entry["name"].split(":")[0].removeprefix("serving_default_"): one[None]}) for one in as_int8]
    assert graph.head is not None
    for scale_ in graph.head.scales:
        raw = {name: exact[place] for name, place in names.items()}
        fake = {name: rounded[place] for name, place in names.items()}
        for role, values in by_role(raw, scale_).items():
            name = f"{role}_{scale_.stride}"
            step, shift = runner.get_output_details()[name]["quantization"]
            in_file = np.concatenate([(one[name].astype(np.float32) - shift) * step for one in found])
            of_file = decibels(values, in_file.reshape(values.shape))
            of_model = decibels(values, by_role(fake, scale_)[role])
            # The file rounds its outputs too; its ranges are averaged over the pictures in another way.
            assert of_file - 1 < of_model < of_file + 1, (name, of_file, of_model)


def test_a_trained_network_is_in_float_and_its_layers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    graph = toy_graph("mish")
    training = dataclasses.replace(TRAINING, freeze=("conv_3",))
    result = quantization_aware(graph, QuantizationAware(exclude=("near",)), training, data())
    reasons = {layer.name: layer.reason for layer in result.layers}
    assert reasons == {
        **dict.fromkeys(("conv_0", "conv_1", "grouped", "depthwise", "conv_2", "far"), ""),
        "conv_3": "frozen",
        "near": "left out by the scope",
        "shaped": "mish: its 8-bit arithmetic is not imitated; it stays in float",
    }
    for node in graph.nodes:
        for name, before in node.weights.items():
            after = result.graph.by_name[node.name].weights[name]
            still = node.name == "conv_3" or name in ("moving_mean", "moving_variance")
            assert np.array_equal(before, after) == still, (node.name, name)
    kernel = result.graph.by_name["conv_2"].weights["kernel"]
    assert len(np.unique(kernel)) > 255 * 8
    assert result.layers[0].zeros is None and result.facts["history"][-1]["epoch"] == 2


def _with_kernels(graph: Graph, change: Any) -> Graph:
    nodes = []
    for node in graph.nodes:
        if node.op == "Conv2D":
            node = dataclasses.replace(node, weights={**node.weights, "kernel": change(node.weights["kernel"])})
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _clustered(kernel: np.ndarray) -> np.ndarray:
    """Seven values, zero among them."""
    step = np.float32(np.abs(kernel).max() / 3)
    return np.asarray(np.round(kernel / step) * step, np.float32)


@pytest.mark.parametrize("preserve", [("sparsity",), ("clusters",), ("sparsity", "clusters")])
def test_zeros_and_clusters_are_kept(preserve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    graph = _with_kernels(small_graph(), _clustered)
    training = dataclasses.replace(TRAINING, learning_rate=1e-3)
    result = quantization_aware(graph, QuantizationAware(preserve), training, data())
    for layer in result.layers:
        if layer.op == "Conv2D":
            before, after = (each.by_name[layer.name].weights["kernel"] for each in (graph, result.graph))
            assert not np.array_equal(before, after)
            assert (after[before == 0] == 0).all()
            values = {float(value): np.unique(after[before == value]) for value in np.unique(before)}
            if "clusters" in preserve:
                assert all(len(found) == 1 for found in values.values()), layer.name
                assert layer.values == (len(values),) * 2
                assert layer.zeros == ((before == 0).mean(),) * 2
            else:
                assert sum(map(len, values.values())) > 20, layer.name
    for kept in preserve:
        # The depthwise layer has neither.
        assert f"{kept} kept in 3 of 4 layers, which had some" in result.notes


def test_a_cluster_takes_its_weights_mean() -> None:
    import tensorflow as tf

    variable = tf.Variable(np.array([0, 1, 1, -2, -2, -2], np.float32).reshape(1, 1, 2, 3))
    keep = _keeper(variable, ("clusters",))
    variable.assign(np.array([5, 1, 2, -1, -2, -6], np.float32).reshape(1, 1, 2, 3))
    keep()
    mean, other = (1 + 2) / 2, (-1 - 2 - 6) / 3
    np.testing.assert_array_equal(variable.numpy().ravel(), [0, mean, mean, other, other, other])


def test_a_kernel_without_clusters_keeps_its_zeros_alone() -> None:
    import tensorflow as tf

    values = np.arange(300, dtype=np.float32).reshape(1, 1, 1, 300)
    variable = tf.Variable(values)
    keep = _keeper(variable, ("clusters", "sparsity"))
    variable.assign(values + 7)
    keep()
    np.testing.assert_array_equal(variable.numpy(), np.where(values == 0, 0, values + 7))


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(InputError, match="sparsity or clusters: got 'zeros'"):
        QuantizationAware(preserve=("zeros",))  # type: ignore[arg-type]
