"""Graph's own checks, and the two functions that passes are made of."""

import dataclasses

import numpy as np
import pytest

from deploy.contract import Scale, YoloHead
from deploy.errors import GraphError
from toolchain.graph import Graph, Node, plain, reachable, replace_layers, replace_nodes


def _chain(*names: str) -> Graph:
    nodes = [
        Node(name, "ReLU" if index else "InputLayer", names[index - 1 : index]) for index, name in enumerate(names)
    ]
    return Graph("chain", tuple(nodes), (names[-1],))


def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(GraphError, match="'a' stands twice in 'g'"):
        Graph("g", (Node("a", "InputLayer"), Node("a", "ReLU")), ("a",))


@pytest.mark.parametrize("source", ["missing", "later", "b"])
def test_an_input_stands_before_its_reader(source: str) -> None:
    nodes = (Node("a", "InputLayer"), Node("b", "Add", ("a", source)), Node("later", "ReLU", ("b",)))
    with pytest.raises(GraphError, match=f"'b' reads '{source}'"):
        Graph("g", nodes, ("later",))


def test_weights_are_shared_with_an_earlier_node() -> None:
    with pytest.raises(GraphError, match="'b' reads 'c'"):
        Graph(
            "g",
            (Node("a", "InputLayer"), Node("b", "Dense", ("a",), shared_with="c"), Node("c", "Dense", ("a",))),
            ("b",),
        )


def test_an_output_is_a_node() -> None:
    with pytest.raises(GraphError, match="'z' is none of 'g''s 1 nodes"):
        Graph("g", (Node("a", "InputLayer"),), ("z",))


def test_readers_are_listed_once_each_in_order() -> None:
    nodes = (
        Node("a", "InputLayer"),
        Node("b", "Add", ("a", "a")),
        Node("c", "ReLU", ("a",)),
        Node("d", "Add", ("b", "c")),
    )
    graph = Graph("g", nodes, ("d",))
    assert [node.name for node in graph.readers["a"]] == ["b", "c"]
    assert graph.readers["d"] == ()
    assert graph.by_name["c"] is nodes[2]


def test_reachable_drops_what_no_output_needs_and_keeps_inputs_and_owners_of_weights() -> None:
    nodes = (
        Node("a", "InputLayer"),
        Node("unused_input", "InputLayer"),
        Node("owner", "Dense", ("a",), {}, {"kernel": np.zeros((1, 1), np.float32)}),
        Node("user", "Dense", ("a",), shared_with="owner"),
        Node("dead", "ReLU", ("user",)),
    )
    graph = reachable(Graph("g", nodes, ("user",)))
    assert [node.name for node in graph.nodes] == ["a", "unused_input", "owner", "user"]
    assert graph.outputs == ("user",)


def test_replace_nodes_puts_the_new_ones_in_the_place_of_the_old() -> None:
    graph = _chain("a", "b", "c")
    new = (Node("b_0", "ReLU", ("a",)), Node("b", "ELU", ("b_0",)))
    replaced = replace_nodes(graph, {"b": new})
    assert [node.name for node in replaced.nodes] == ["a", "b_0", "b", "c"]
    assert [node.name for node in graph.nodes] == ["a", "b", "c"], "the old graph is as it was"


def test_replace_nodes_that_loses_a_name_is_refused() -> None:
    with pytest.raises(GraphError, match="'c' reads 'b'"):
        replace_nodes(_chain("a", "b", "c"), {"b": (Node("other", "ReLU", ("a",)),)})


def test_a_graph_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _chain("a", "b").name = "other"  # type: ignore[misc]


def test_plain_values() -> None:
    assert plain({"a": (1, np.float32(0.5)), "b": np.arange(2)}) == {"a": [1, 0.5], "b": [0, 1]}
    with pytest.raises(TypeError, match="no plain JSON value"):
        plain(object())


def test_a_replaced_layer_is_followed_by_its_readers_outputs_and_head() -> None:
    graph = dataclasses.replace(
        _chain("a", "b", "c"), outputs=("b", "c"), head=YoloHead((Scale(8, ((1.0, 1.0),), {"xy": "b", "wh": "c"}),))
    )
    changed = replace_layers(graph, {"b": (Node("b_0", "ReLU", ("a",)), Node("b_1", "ReLU", ("b_0",)))})
    assert [(node.name, node.inputs) for node in changed.nodes] == [
        ("a", ()),
        ("b_0", ("a",)),
        ("b_1", ("b_0",)),
        ("c", ("b_1",)),
    ]
    assert changed.outputs == ("b_1", "c")
    assert isinstance(changed.head, YoloHead)
    assert changed.head.scales[0].outputs == {"xy": "b_1", "wh": "c"}


def test_layers_next_to_each_other_are_replaced_together() -> None:
    chains = {name: (Node(f"{name}_0", "ReLU", (source,)),) for name, source in (("b", "a"), ("c", "b"))}
    changed = replace_layers(_chain("a", "b", "c"), chains)
    assert [node.inputs for node in changed.nodes] == [(), ("a",), ("b_0",)]
    assert changed.outputs == ("c_0",)


def test_a_layer_whose_weights_are_shared_is_not_replaced() -> None:
    nodes = (Node("a", "InputLayer"), Node("b", "Dense", ("a",)), Node("c", "Dense", ("a",), shared_with="b"))
    with pytest.raises(GraphError, match="'c' reads 'b'"):
        replace_layers(Graph("g", nodes, ("c",)), {"b": (Node("b_0", "Dense", ("a",)),)})
