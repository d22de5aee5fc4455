import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import GraphError
from squares import toy_graph
from toolchain.graph import Graph, Node
from toolchain.input_size import resized
from toolchain.shapes import shapes


def test_every_layer_follows_the_input(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    larger = resized(graph, (96, 128))
    before, after = shapes(graph), shapes(larger)
    for name, (height, width, channels) in before.items():
        # A padded side has a pixel more than its cells.
        odd = height % 2
        assert after[name] == ((height - odd) * 96 // 64 + odd, (width - odd) * 128 // 64 + odd, channels)
    assert larger.input == dataclasses.replace(graph.input, height=96, width=128)  # type: ignore[type-var]
    for one, other in zip(graph.nodes, larger.nodes, strict=True):
        assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def with_resize(folder: Path, height: int, width: int) -> Graph:
    graph = toy_graph(folder)
    node = Node("up", "Resize", (graph.nodes[-1].name,), {"height": height, "width": width, "interpolation": "nearest"})
    return dataclasses.replace(graph, nodes=(*graph.nodes, node))


def test_a_resize_grows_alike(tmp_path: Path) -> None:
    node = resized(with_resize(tmp_path, 16, 32), (96, 32)).by_name["up"]
    assert (node.attributes["height"], node.attributes["width"]) == (16 * 96 // 64, 32 * 32 // 64)


def test_a_resize_to_parts_of_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="'up' makes 3 of 64 pixels, which 72 do not divide into"):
        resized(with_resize(tmp_path, 3, 3), (72, 72))
