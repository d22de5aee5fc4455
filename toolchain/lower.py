"""Rewrites a graph into one that converts to operations which the kernels run fast, each rewrite with its reason.

A lowered graph computes what the graph computed, with two kinds of exception that its notes name: an activation which
has no integer kernel is approximated for int8, and a prediction is split by role, which is exact but gives other
outputs.

Left alone on purpose, because measured as good as any rewrite: LeakyReLU (LEAKY_RELU is one operation in float, and in
int8 by quantize.py), SiLU (LOGISTIC and MUL), hard swish (HARD_SWISH), ELU, Mish in float (EXP, ADD, LOG, TANH, MUL,
all of them XNNPACK's), grouped convolutions (one CONV_2D), explicit zero padding before a strided convolution (XNNPACK
takes it into the convolution).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from deploy.errors import ConversionError
from toolchain.graph import Graph, Node, reachable
from toolchain.head import split_by_role
from toolchain.shapes import shapes

#: Layers that do nothing outside training.
_TRAINING_ONLY = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout2D",
)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The graph to convert, and for every rewritten node what was done and why."""

    graph: Graph
    notes: tuple[str, ...]
    #: True when this graph is for int8 alone: a float file of it is not the float32 file.
    int8_only: bool = False


def lower(graph: Graph, precision: str) -> Lowered:
    """Lowers a detector for one precision (deploy.contract.PRECISIONS).

    Its outputs are one node for each role and scale, in the order of the head's scales and of ROLES.

    Raises ConversionError when the graph has no head or no input, two scales have the same stride, or a weight is not
    finite.
    """
    check_convertible(graph)
    notes = [f"{name}: split by role, so that int8 gives each role its own scale" for name in _raw_outputs(graph)]
    lowered = lower_layers(split_by_role(graph), precision)
    return dataclasses.replace(lowered, notes=(*notes, *lowered.notes))


def lower_layers(graph: Graph, precision: str) -> Lowered:
    """Lowers a network that need be no detector, such as a part of one, for one precision; its outputs stay what they
    are."""
    plain, removed = _without_training_only(graph)
    rewritten, notes, int8_only = _rewritten(plain, precision)
    return Lowered(reachable(rewritten), (*removed, *notes), int8_only)


def check_convertible(graph: Graph) -> None:
    """Raises ConversionError unless the graph is a described detector with finite weights and one scale for each
    stride."""
    if graph.head is None or graph.input is None:
        missing = "head" if graph.head is None else "input"
        raise ConversionError(f"a detector has an input and a head: {graph.name!r} has no {missing}; describe it first")
    if graph.head.kind != "yolo" or not graph.head.scales:
        raise ConversionError(f"a detector has at least one scale: {graph.name!r} has none; describe its head")
    strides = [scale.stride for scale in graph.head.scales]
    for stride in strides:
        if strides.count(stride) > 1:
            raise ConversionError(
                f"outputs are named by role and stride: {strides.count(stride)} scales of {graph.name!r} have the "
                f"stride {stride}; "
                "merge their anchors into one scale"
            )
    _check_finite(graph)


def _check_finite(graph: Graph) -> None:
    for node in graph.nodes:
        for name, array in node.weights.items():
            wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
            if wrong:
                raise ConversionError(
                    f"weights are finite numbers: {wrong} of {array.size} values of {node.name!r}'s {name} are NaN or "
                    "infinite; "
                    "read the weights again or train anew"
                )


def _raw_outputs(graph: Graph) -> list[str]:
    assert graph.head is not None
    return [scale.outputs["raw"] for scale in graph.head.scales if "raw" in scale.outputs]


def _without_training_only(graph: Graph) -> tuple[Graph, list[str]]:
    """Takes out layers that pass their input on unchanged; one that is itself an output stays."""
    stands_for: dict[str, str] = {}
    nodes, notes = [], []
    for node in graph.nodes:
        inputs = tuple(stands_for.get(name, name) for name in node.inputs)
        idle = node.op in _TRAINING_ONLY or (node.op == "Activation" and node.attributes["activation"] == "linear")
        if idle and node.name not in graph.outputs:
            stands_for[node.name] = inputs[0]
            notes.append(f"{node.name}: removed, {node.op} does nothing in inference")
        else:
            nodes.append(dataclasses.replace(node, inputs=inputs))
    return dataclasses.replace(graph, nodes=tuple(nodes)), notes


def _rewritten(graph: Graph, precision: str) -> tuple[Graph, list[str], bool]:
    extents = shapes(graph)
    nodes: list[Node] = []
    notes: list[str] = []
    int8_only = False
    for node in _activations_apart(graph) if precision.startswith("int8") else graph.nodes:
        activation = node.attributes.get("activation") if node.op == "Activation" else None
        if node.op == "UpSampling2D" and node.attributes.get("interpolation", "nearest") == "nearest":
            nodes.append(_resize(node, extents))
            notes.append(f"{node.name}: one resize in place of Keras's upsampling, which becomes 5-D RESHAPE and TILE")
        elif precision.startswith("int8") and activation == "mish":
            nodes += _mish_by_sigmoid(node)
            notes.append(
                f"{node.name}: Mish approximated by x*sigmoid(1.0858x + 0.2598 + relu(0.5272x)), off by 0.0064 at most:"
                " its own EXP and LOG lose all accuracy in int8"
            )
            int8_only = True
        elif precision.startswith("int8") and activation in ("hard_silu", "hard_swish"):
            nodes += _hard_swish_by_multiply(node)
            notes.append(f"{node.name}: (x/6)*relu6(x + 3) in place of HARD_SWISH, 5 times as slow in int8")
            # Exact, but one operation more in float.
            int8_only = True
        else:
            nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes)), notes, int8_only


def _activations_apart(graph: Graph) -> list[Node]:
    """The nodes, with an activation that int8 rewrites in a node of its own where it was a setting of another layer."""
    nodes: list[Node] = []
    for node in graph.nodes:
        activation = node.attributes.get("activation")
        if node.op != "Activation" and activation in ("mish", "hard_silu", "hard_swish"):
            linear = f"{node.name}_linear"
            nodes.append(dataclasses.replace(node, name=linear, attributes={**node.attributes, "activation": "linear"}))
            nodes.append(Node(node.name, "Activation", (linear,), {"activation": activation}))
        else:
            nodes.append(node)
    return nodes


def _resize(node: Node, extents: Mapping[str, tuple[int, ...]]) -> Node:
    height, width, _ = extents[node.name]
    attributes = {"height": height, "width": width, "interpolation": "nearest"}
    return dataclasses.replace(node, op="Resize", attributes=attributes)


def _mish_by_sigmoid(node: Node) -> list[Node]:
    """x * σ(1.0858x + 0.2598 + relu(0.5272x)).

    Mish, x * tanh(softplus(x)), is x * σ(x + softplus(x - ln 2)) exactly. Two straight pieces in place of what the
    sigmoid is taken of, fitted for the least greatest error of the product, are off by 0.0064 at most; the best single
    one, 1.2623x + 0.5759, by 0.031: on yolov4-tiny with Mish that is 12 dB more noise, and two operations fewer.
    """
    low, part, high, bent, gate = (f"{node.name}_{part}" for part in ("low", "part", "high", "bent", "gate"))
    return [
        Node(low, "Rescaling", node.inputs, {"scale": 1.0858, "offset": 0.2598}),
        Node(part, "Rescaling", node.inputs, {"scale": 0.5272, "offset": 0.0}),
        Node(high, "ReLU", (part,), {}),
        Node(bent, "Add", (low, high)),
        Node(gate, "Activation", (bent,), {"activation": "sigmoid"}),
        Node(node.name, "Multiply", (node.inputs[0], gate)),
    ]


def _hard_swish_by_multiply(node: Node) -> list[Node]:
    """(x/6) * min(max(x + 3, 0), 6): grouped so that the converter does not make HARD_SWISH of it again."""
    sixth, shifted, gate = f"{node.name}_sixth", f"{node.name}_shifted", f"{node.name}_gate"
    return [
        Node(sixth, "Rescaling", node.inputs, {"scale": 1 / 6, "offset": 0.0}),
        Node(shifted, "Rescaling", node.inputs, {"scale": 1.0, "offset": 3.0}),
        Node(gate, "ReLU", (shifted,), {"max_value": 6.0}),
        Node(node.name, "Multiply", (sixth, gate)),
    ]
