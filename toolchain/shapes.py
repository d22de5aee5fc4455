"""Shapes of every node's output, computed from attributes alone: (height, width, channels), (n,) and other ranks, no
batch.

The ops, under Keras's class names and with Keras's attributes (missing ones have Keras's defaults):
    InputLayer {"shape"}
    Conv2D, DepthwiseConv2D, SeparableConv2D, Conv2DTranspose, Dense
    BatchNormalization, LayerNormalization, GroupNormalization, UnitNormalization, Normalization, Rescaling
    Activation {"activation"}, ReLU, LeakyReLU, PReLU, ELU, Softmax, Identity
    Dropout, SpatialDropout2D, GaussianNoise, GaussianDropout, AlphaDropout
    MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D, GlobalMaxPooling2D
    ZeroPadding2D, Cropping2D, UpSampling2D, Reshape, Flatten, Permute, RepeatVector
    Add, Subtract, Multiply, Average, Maximum, Minimum, Concatenate
and ours, where Keras has no layer:
    Slice {"axis", "start", "stop"}                  x[..., start:stop]; axis counts from the end, -1 are the channels
    Resize {"height", "width", "interpolation"}      "nearest" or "bilinear", half-pixel centres
    DarknetReorg {"stride"}                          darknet's reorg layer: (h, w, c) to (h/s, w/s, c*s*s)
    MirrorPad {"padding": [[t, b], [l, r]], "mode"}  "symmetric" or "reflect"
Every other op is opaque: it has its full Keras config and the attribute "recorded_shape", its output when it was read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploy.errors import GraphError
from toolchain.graph import Graph, Node, owner
from toolchain.shape_rules import MERGES, RULES, SAME, Shape, known


def shapes(graph: Graph) -> dict[str, Shape]:
    """The shape of every node's output, without the batch, in graph order.

    Raises GraphError, naming the node, where a shape is not known, an input or a weight does not fit, or nothing
    would be left.
    """
    found: dict[str, Shape] = {}
    for node in graph.nodes:
        sources = [found[name] for name in node.inputs]
        shape = _node_shape(node, sources, owner(graph, node).weights)
        if any(size < 1 for size in shape):
            raise GraphError(
                f"every output has at least one element: {node.op} {node.name!r} turns {sources} into {shape}"
            )
        found[node.name] = shape
    return found


def has_rule(op: str) -> bool:
    """Whether shape and cost of the op are known here; if not it is opaque."""
    return op in SAME or op in RULES or op in MERGES


def _node_shape(node: Node, sources: list[Shape], weights: Mapping[str, np.ndarray]) -> Shape:
    if has_rule(node.op):
        _check_number_of_inputs(node)
        try:
            if node.op in MERGES:
                return MERGES[node.op](node, sources)
            return sources[0] if node.op in SAME else RULES[node.op](node, sources[0] if sources else (), weights)
        except (KeyError, TypeError, ValueError) as error:
            raise GraphError(
                f"{node.op} {node.name!r} cannot take {sources[0] if sources else 'its attributes'}: {error} is missing"
                f" or malformed in {dict(node.attributes)}"
            ) from error
    recorded = node.attributes.get("recorded_shape")
    if recorded is None:
        raise GraphError(
            f"the shape of an op without a rule is recorded when it is read: {node.op} {node.name!r} has no"
            " recorded_shape"
        )
    return known(node, recorded)


def _check_number_of_inputs(node: Node) -> None:
    count = len(node.inputs)
    if node.op in MERGES and not count:
        raise GraphError(f"a {node.op} reads at least one node: {node.name!r} reads none")
    expected = 0 if node.op == "InputLayer" else 1
    if node.op not in MERGES and count != expected:
        raise GraphError(f"a {node.op} reads {expected} node(s): {node.name!r} reads {count}")
