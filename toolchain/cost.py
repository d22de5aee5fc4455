"""Parameters and FLOPs of a graph, exact and analytic; a profiler's answer changes with its version.

The rule, for batch 1, with `out` the number of output elements and `in` that of input elements:
    Conv2D                       2 * out * kh * kw * cin / groups
    DepthwiseConv2D              2 * out * kh * kw
    SeparableConv2D              the two together
    Conv2DTranspose              2 * in * kh * kw * cout
    Dense                        2 * out * cin
    bias of any of these         out
    max and average pooling      out * kh * kw
    global pooling               in
    Multiply, Rescaling          out, for each of the n - 1 products; a Rescaling by 1 only adds: 0
    silu, mish, gelu, hard_silu  out (x times a gate: one multiply)
    UpSampling2D                 2
    everything else with a rule  0 (batch norm, add, maximum, LeakyReLU, sigmoid, concat, pad, resize, reorg, slice, …)
An opaque op counts 0 and is named in flops_unknown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from toolchain.graph import Graph, Node, owner
from toolchain.shape_rules import Shape, kernel_size, pair
from toolchain.shapes import has_rule, shapes

#: x times a gate of x: one elementwise multiply, under all of their names.
_GATED = frozenset(("silu", "swish", "mish", "gelu", "hard_silu", "hard_swish"))
#: Weights that gradient descent leaves alone.
_STATISTICS = frozenset(("moving_mean", "moving_variance"))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts of one node or of a whole graph."""

    #: Parameters that training changes.
    trainable: int
    #: All others: batch norm's statistics, and everything in a layer that is frozen.
    non_trainable: int
    #: Operations for one picture.
    flops: int
    #: Nodes without a rule, whose operations are not in flops.
    flops_unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All parameters."""
        return self.trainable + self.non_trainable


def cost(graph: Graph) -> Cost:
    """Parameters and FLOPs of the graph. Raises GraphError where a shape is not known."""
    parts = node_costs(graph).values()
    return Cost(
        trainable=sum(part.trainable for part in parts),
        non_trainable=sum(part.non_trainable for part in parts),
        flops=sum(part.flops for part in parts),
        flops_unknown=tuple(name for part in parts for name in part.flops_unknown),
    )


def node_costs(graph: Graph) -> dict[str, Cost]:
    """Parameters and FLOPs of every node, in graph order; a node that shares weights has none of its own."""
    found = shapes(graph)
    costs = {}
    for node in graph.nodes:
        trainable, non_trainable = _parameters(node)
        sources = [found[name] for name in node.inputs]
        flops = _flops(node, sources, found[node.name], owner(graph, node).weights)
        unknown = () if has_rule(node.op) else (node.name,)
        costs[node.name] = Cost(trainable, non_trainable, flops, unknown)
    return costs


def _parameters(node: Node) -> tuple[int, int]:
    total = sum(array.size for array in node.weights.values())
    if node.attributes.get("trainable") is False or node.op == "Normalization":
        return 0, total
    still = _STATISTICS.union(node.attributes.get("non_trainable_weights", ()))
    fixed = sum(array.size for name, array in node.weights.items() if name in still)
    return total - fixed, fixed


def _flops(node: Node, sources: list[Shape], shape: Shape, weights: Mapping[str, np.ndarray]) -> int:
    out = math.prod(shape)
    gate = out if _is_gated(node) else 0
    if node.op in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Dense"):
        bias = out if node.attributes.get("use_bias", "bias" in weights) else 0
        return _products(node, sources[0], shape, weights) * 2 + bias + gate
    if node.op in ("MaxPooling2D", "AveragePooling2D"):
        return out * math.prod(pair(node.attributes.get("pool_size", 2)))
    if node.op in ("GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        return math.prod(sources[0])
    if node.op == "Multiply":
        return out * (len(sources) - 1)
    if node.op == "Rescaling":
        return 0 if node.attributes.get("scale", 1.0) == 1.0 else out
    return 2 if node.op == "UpSampling2D" else gate


def _is_gated(node: Node) -> bool:
    activation = node.attributes.get("activation")
    return isinstance(activation, str) and activation in _GATED and has_rule(node.op)


def _products(node: Node, source: Shape, shape: Shape, weights: Mapping[str, np.ndarray]) -> int:
    out, channels = math.prod(shape), source[-1]
    if node.op == "Dense":
        return out * channels
    window = math.prod(kernel_size(node, weights))
    if node.op == "Conv2DTranspose":
        return math.prod(source) * window * shape[-1]
    if node.op == "Conv2D":
        return out * window * (channels // int(node.attributes.get("groups", 1)))
    if node.op == "DepthwiseConv2D":
        return out * window
    middle = channels * int(node.attributes.get("depth_multiplier", 1))
    return shape[0] * shape[1] * middle * (window + shape[-1])
