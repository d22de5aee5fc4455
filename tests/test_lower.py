"""Lowering: what is rewritten, that it computes the same, and what is refused."""

import dataclasses

import numpy as np
import pytest
from toy_network import SIDE, toy_graph

from deploy.contract import ROLES, Input, YoloHead
from deploy.errors import ConversionError
from toolchain.graph import Graph, Node
from toolchain.keras_writer import to_keras
from toolchain.lower import lower
from toolchain.reference import by_role


def _run(graph: Graph, picture: np.ndarray) -> dict[str, np.ndarray]:
    outputs = to_keras(graph)(picture, training=False)
    return dict(zip(graph.outputs, (np.asarray(output) for output in outputs)))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _both(graph: Graph, precision: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(output, lowered, as it was) of a picture of noise."""
    lowered = lower(graph, precision).graph
    picture = np.random.default_rng(1).random((1, SIDE, SIDE, 3), np.float32)
    before, after = _run(graph, picture), _run(lowered, picture)
    assert graph.head is not None and lowered.head is not None
    pairs = []
    for old, new in zip(graph.head.scales, lowered.head.scales):
        expected = by_role(before, old)
        pairs += [(new.outputs[role], after[new.outputs[role]], expected[role]) for role in ROLES]
    return pairs


def test_the_toy_computes_the_same_and_says_what_was_done() -> None:
    graph = toy_graph()
    found = lower(graph, "float32")
    ops = [node.op for node in found.graph.nodes]
    assert ops.count("Resize") == 1 and "UpSampling2D" not in ops and "Dropout" not in ops
    assert "linear" not in found.graph.by_name
    told = {note.partition(":")[0] for note in found.notes}
    assert told == {"far", "near", "dropout", "linear", "up"}
    assert not found.int8_only
    # Splitting and resizing move numbers about; only the order of sums in a narrower convolution may change: a few
    # epsilons.
    for name, after, before in _both(graph, "float32"):
        assert _relative(after, before) < 8 * 2**-23, name


@pytest.mark.parametrize(("activation", "ops"), [("hard_swish", ["Rescaling", "Rescaling", "ReLU", "Multiply"])])
def test_hard_swish_is_rewritten_for_int8_alone(activation: str, ops: list[str]) -> None:
    graph = toy_graph(activation)
    assert lower(graph, "float32").graph.by_name["shaped"].op == "Activation"
    found = lower(graph, "int8")
    assert found.int8_only
    assert [node.op for node in found.graph.nodes if node.name.startswith("shaped")] == ops
    # x/6 * relu6(x + 3) rounds twice more than hard swish in each value; eight epsilons hold seven layers' worth.
    for name, after, before in _both(graph, "int8"):
        assert _relative(after, before) < 16 * 2**-23, name


def test_mish_is_approximated_for_int8_alone() -> None:
    graph = toy_graph("mish")
    assert not lower(graph, "dynamic").int8_only
    found = lower(graph, "int8")
    assert found.int8_only and any("Mish approximated" in note for note in found.notes)
    image = Node("image", "InputLayer", (), {"shape": [1, 4001, 1]})
    alone = Graph("mish", (image, Node("mish", "Activation", ("image",), {"activation": "mish"})), ("mish",))
    shaped = [node for node in found.graph.nodes if node.name.startswith("shaped")]
    on_image = [
        dataclasses.replace(node, inputs=tuple("image" if name == "grouped" else name for name in node.inputs))
        for node in shaped
    ]
    rewritten = Graph("mish", (image, *on_image), ("shaped",))
    line = np.linspace(-20, 20, 4001, dtype=np.float32).reshape(1, 1, 4001, 1)
    exact = line * np.tanh(np.logaddexp(0, line.astype(np.float64)))
    approximate = np.asarray(to_keras(rewritten)(line))
    # The fit's own greatest error, 0.00635, is a sixth of a step of a range of 10 (10 / 255 = 0.039).
    assert np.abs(approximate - exact).max() < 0.0064
    assert np.abs(np.asarray(to_keras(alone)(line)) - exact).max() < 1e-5


def _with_attribute(graph: Graph, name: str, **attributes: object) -> Graph:
    node = graph.by_name[name]
    changed = dataclasses.replace(node, attributes={**node.attributes, **attributes})
    return dataclasses.replace(graph, nodes=tuple(changed if node.name == name else node for node in graph.nodes))


def test_an_activation_inside_a_convolution_is_rewritten_too() -> None:
    graph = toy_graph()
    found = lower(_with_attribute(graph, "conv_2", activation="hard_silu"), "int8").graph
    assert found.by_name["conv_2"].op == "Multiply"
    assert found.by_name["conv_2_linear"].attributes["activation"] == "linear"


def test_bilinear_upsampling_stays() -> None:
    graph = toy_graph()
    found = lower(_with_attribute(graph, "up", interpolation="bilinear"), "float32").graph
    assert found.by_name["up"].op == "UpSampling2D"


def test_a_dropout_that_is_an_output_stays() -> None:
    graph = toy_graph()
    assert graph.head is not None
    outputs = {role: role for role in ROLES}
    nodes = list(graph.nodes)
    for index, role in enumerate(ROLES):
        nodes.append(Node(f"{role}_part", "Slice", ("far",), {"axis": -1, "start": index, "stop": index + 1}))
        nodes.append(Node(role, "Dropout", (f"{role}_part",), {"rate": 0.1}))
    head = YoloHead((dataclasses.replace(graph.head.scales[0], outputs=outputs),))
    kept = lower(dataclasses.replace(graph, nodes=tuple(nodes), outputs=tuple(ROLES), head=head), "float32").graph
    assert [kept.by_name[role].op for role in ROLES] == ["Dropout"] * 4


def _with_weight(graph: Graph, name: str, value: float) -> Graph:
    node = graph.by_name[name]
    kernel = node.weights["kernel"].copy()
    kernel[0, 0, 0, 0] = value
    changed = dataclasses.replace(node, weights={**node.weights, "kernel": kernel})
    return dataclasses.replace(graph, nodes=tuple(changed if node.name == name else node for node in graph.nodes))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_with_their_layer(value: float) -> None:
    with pytest.raises(ConversionError, match="'conv_2'.*kernel"):
        lower(_with_weight(toy_graph(), "conv_2", value), "float32")


def test_what_is_no_detector_is_refused() -> None:
    graph = toy_graph()
    assert graph.head is not None
    with pytest.raises(ConversionError, match="no head"):
        lower(dataclasses.replace(graph, head=None), "float32")
    with pytest.raises(ConversionError, match="no input"):
        lower(dataclasses.replace(graph, input=None), "float32")
    with pytest.raises(ConversionError, match="at least one scale"):
        lower(dataclasses.replace(graph, head=YoloHead(())), "float32")


def test_two_scales_of_one_stride_are_refused() -> None:
    graph = toy_graph()
    assert graph.head is not None and isinstance(graph.input, Input)
    scales = tuple(dataclasses.replace(scale, stride=16) for scale in graph.head.scales)
    with pytest.raises(ConversionError, match="2 scales .* stride 16"):
        lower(dataclasses.replace(graph, head=YoloHead(scales)), "float32")
