"""The same network for pictures of another size, and which sizes a training may take."""

from __future__ import annotations

import dataclasses
import math

from deploy.errors import GraphError
from toolchain.graph import Graph, Node


def resized(graph: Graph, size: tuple[int, int]) -> Graph:
    """The graph with an input of (height, width), its weights and anchors as they are.

    Raises GraphError where a node's own settings do not follow: a resize to a size that does not divide so.
    """
    assert graph.input is not None
    old = (graph.input.height, graph.input.width)
    nodes = tuple(_resized(node, old, size) for node in graph.nodes)
    return dataclasses.replace(
        graph, nodes=nodes, input=dataclasses.replace(graph.input, height=size[0], width=size[1])
    )


def _resized(node: Node, old: tuple[int, int], new: tuple[int, int]) -> Node:
    if node.op == "InputLayer":
        return dataclasses.replace(node, attributes={**node.attributes, "shape": (*new, node.attributes["shape"][2])})
    if node.op == "Resize":
        sides = {}
        for key, before, after in zip(("height", "width"), old, new, strict=True):
            side, rest = divmod(node.attributes[key] * after, before)
            if rest:
                raise GraphError(
                    f"an input of another size has whole cells: {node.name!r} makes {node.attributes[key]} of"
                    f" {before} pixels, which {after} do not divide into; train at one size"
                )
            sides[key] = side
        return dataclasses.replace(node, attributes={**node.attributes, **sides})
    return node


def sizes_around(graph: Graph, share: float) -> list[tuple[int, int]]:
    """Input sizes, (height, width), by at most this share larger or smaller than the network's: whole cells of the
    coarsest scale, in the network's shape."""
    assert graph.input is not None and graph.head is not None
    height, width = graph.input.height, graph.input.width
    stride = max(scale.stride for scale in graph.head.scales)
    rows, columns = height // stride, width // stride
    parts = math.gcd(rows, columns)
    found = [
        (rows // parts * part * stride, columns // parts * part * stride)
        for part in range(1, 2 * parts + 1)
        if abs(part - parts) <= share * parts
    ]
    return found if share else [(height, width)]
